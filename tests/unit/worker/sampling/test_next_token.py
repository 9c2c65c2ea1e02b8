"""The choice of tokens: how often each one is chosen, and that a seed repeats it."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from app.core.sampling.messages import SamplingParameters
from worker.sampling.decoding.next_token import Floats, TokenChooser
from worker.sampling.decoding.refusals import RefusedError

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, -2.0, 0.5], np.float32)
DRAWS = 4000
CRITICAL = 20.515
"""Chi-square with 5 degrees of freedom exceeds it once in a thousand times."""


def chooser(
    *, vocabulary: int = len(LOGITS), choice: int = 0, **parameters: object
) -> TokenChooser:
    return TokenChooser(
        SamplingParameters.model_validate(parameters), choice=choice, vocabulary=vocabulary
    )


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits)
    return weights / weights.sum()


def chi_square(counts: Counter[int], expected: Floats) -> float:
    total = counts.total()
    possible = np.flatnonzero(expected).tolist()
    return sum(
        (counts[token] - total * float(expected[token])) ** 2 / (total * float(expected[token]))
        for token in possible
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_by_their_probability(temperature: float) -> None:
    choose = chooser(seed=7, temperature=temperature).choose

    counts = Counter(choose(LOGITS) for _ in range(DRAWS))

    assert chi_square(counts, softmax(LOGITS / temperature)) < CRITICAL


def test_top_p_draws_from_the_fewest_tokens_that_have_its_share() -> None:
    kept = np.array([0, 1, 5])  # 0.53, 0.2 and 0.12 of the probability
    expected = np.zeros(len(LOGITS), np.float32)
    expected[kept] = softmax(LOGITS[kept])
    choose = chooser(seed=7, top_p=0.8).choose

    counts = Counter(choose(LOGITS) for _ in range(DRAWS))

    assert set(counts) == set(kept.tolist())
    assert chi_square(counts, expected) < CRITICAL


def test_top_p_of_even_probabilities_keeps_its_share_of_the_tokens() -> None:
    even = np.zeros(1000, np.float32)
    choose = chooser(seed=1, top_p=0.25, vocabulary=1000).choose

    assert {choose(even) for _ in range(DRAWS)} == set(range(250))


VOCABULARY = 2000
"""About four times as many tokens as `next_token` draws from at once."""
GROUPS = 40
CRITICAL_OF_GROUPS = 72.055
"""Chi-square with 39 degrees of freedom exceeds it once in a thousand times."""


@pytest.mark.parametrize(
    ("top_p", "fewest", "most"),
    [
        pytest.param(1.0, VOCABULARY, VOCABULARY, id="all"),
        pytest.param(0.95, 600, 1900, id="a nucleus of several blocks"),
        pytest.param(0.3, GROUPS, 500, id="a nucleus within a block"),
    ],
)
def test_tokens_of_a_large_vocabulary_are_drawn_by_their_probability(
    top_p: float, fewest: int, most: int
) -> None:
    # Later tokens are likelier, so that no two blocks have the same weight.
    noise = np.random.default_rng(0).standard_normal(VOCABULARY, np.float32)
    logits = 1.5 * noise + np.linspace(0, 2, VOCABULARY, dtype=np.float32)
    likelihood = softmax(logits).astype(np.float64)
    likeliest = np.argsort(-likelihood, kind="stable")
    count = int(likelihood[likeliest].cumsum().searchsorted(top_p - 1e-6)) + 1
    kept = np.sort(likeliest[:count])
    choose = chooser(seed=7, top_p=top_p, vocabulary=VOCABULARY).choose

    drawn = np.bincount([choose(logits) for _ in range(20_000)], minlength=VOCABULARY)

    assert fewest <= len(kept) <= most
    assert drawn[kept].sum() == drawn.sum()
    groups = np.array_split(kept, GROUPS)
    expected = np.array([likelihood[group].sum() for group in groups])
    expected *= drawn.sum() / expected.sum()
    observed = np.array([drawn[group].sum() for group in groups])
    assert ((observed - expected) ** 2 / expected).sum() < CRITICAL_OF_GROUPS


def test_top_p_near_nothing_is_the_most_likely_token() -> None:
    choose = chooser(top_p=1e-9).choose

    assert {choose(LOGITS) for _ in range(50)} == {0}


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-9])
def test_without_temperature_the_most_likely_token_is_chosen(temperature: float) -> None:
    choose = chooser(temperature=temperature, seed=3).choose

    assert {choose(LOGITS) for _ in range(50)} == {0}


def test_a_seed_repeats_an_answer_and_each_answer_has_numbers_of_its_own() -> None:
    def draw(seed: int | None, choice: int) -> list[int]:
        choose = chooser(seed=seed, choice=choice).choose
        return [choose(LOGITS) for _ in range(64)]

    assert draw(5, 0) == draw(5, 0)
    assert len({tuple(draw(5, choice)) for choice in range(4)}) == 4
    assert draw(5, 1) != draw(6, 1)
    assert draw(None, 0) != draw(None, 0)


def test_penalties_follow_openais_formula() -> None:
    choose = chooser(temperature=0, frequency_penalty=0.25, presence_penalty=0.6).choose
    logits = np.array([2.0, 1.0, 0.0], np.float32)
    expected: list[int] = []
    for _ in range(12):
        scores = logits.copy()
        for token in set(expected):
            scores[token] -= 0.25 * expected.count(token) + 0.6
        expected.append(int(scores.argmax()))
    choose = chooser(
        temperature=0, frequency_penalty=0.25, presence_penalty=0.6, vocabulary=3
    ).choose

    assert [choose(logits) for _ in range(12)] == expected
    assert len(set(expected)) > 1
    assert logits.tolist() == [2.0, 1.0, 0.0]


def test_a_bias_bans_a_token_or_makes_it_the_only_one() -> None:
    banned = chooser(seed=1, logit_bias={0: -100}).choose
    forced = chooser(seed=1, logit_bias={4: 100}).choose

    assert 0 not in {banned(LOGITS) for _ in range(200)}
    assert {forced(LOGITS) for _ in range(200)} == {4}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_only_allowed_tokens_are_chosen(top_p: float) -> None:
    allowed = np.array([False, False, True, False, True, False])
    choose = chooser(seed=1, temperature=2, top_p=top_p).choose

    assert {choose(LOGITS, allowed) for _ in range(200)} == {2, 4}


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_numbers_are_reported(temperature: float) -> None:
    choose = chooser(temperature=temperature, vocabulary=3).choose

    with pytest.raises(RefusedError, match="not numbers"):
        choose(np.array([0.0, np.nan, 1.0], np.float32))


def processor_s(act: Callable[[], object], *, tries: int) -> float:
    """The shortest time that it takes of the processor, in seconds."""
    times: list[float] = []
    for _ in range(tries):
        start = time.thread_time()
        act()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"temperature": 0}, id="greedy"),
        pytest.param({}, id="temperature"),
        pytest.param({"top_p": 0.9, "frequency_penalty": 0.5}, id="top_p"),
    ],
)
def test_a_large_vocabulary_takes_a_fraction_of_the_time_of_a_sort(
    parameters: dict[str, float],
) -> None:
    vocabulary = 150_000
    logits = 4 * np.random.default_rng(0).standard_normal(vocabulary, np.float32)
    logits[:5] = float(logits.max()) + np.arange(5) / 2
    choose = chooser(seed=1, vocabulary=vocabulary, **parameters).choose

    sort_s = processor_s(lambda: np.argsort(logits, kind="stable"), tries=5)

    assert processor_s(lambda: choose(logits), tries=30) < sort_s / 10
