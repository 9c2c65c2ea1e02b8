"""The same request with the same seed is answered by the same numbers, to the last bit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from app.core.sampling.messages import Accepted, Delta, Finished
from tests.decode_bench import DecodeBench, Heard
from tests.sampled_models import write_base
from worker.sampling.decoding.choice import Choice
from worker.sampling.model.loading import load_runner
from worker.sampling.model.runner import Runner
from worker.sampling.serving.batch import PIECE
from worker.training.compute.plan import Placement

PROMPT = [index * 7 % 256 for index in range(6 * PIECE + 9)]
TOKENS = 12


@dataclass
class Watched:
    """The most likely tokens, with the numbers by which they were chosen."""

    index: int = 0
    tokens: int = TOKENS
    logits: list[Tensor] = field(default_factory=list[Tensor])

    def take(self, logits_V: Tensor) -> tuple[int | None, list[Delta | Finished]]:  # noqa: N803
        self.logits.append(logits_V.clone())
        if len(self.logits) < self.tokens:
            return int(logits_V.topk(2).indices[self.index % 2]), []
        return None, [Finished(choice=self.index, reason="stop", tokens=self.tokens)]


@pytest.fixture(scope="module", params=["llama", "olmo2"], ids=["fused", "reference"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    width = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}
    directory = tmp_path_factory.mktemp("base") / request.param
    return write_base(directory, request.param, initializer_range=0.05, **width)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest, base: Path) -> Runner:
    dtype: Literal["float32", "bfloat16"] = request.param
    return load_runner(base, Placement("cpu", dtype))


def build_bench(runner: Runner) -> DecodeBench[Runner]:
    return DecodeBench(runner, memory_bytes=2**30)


def begin(
    bench: DecodeBench[Runner],
    prompt: Sequence[int] = PROMPT,
    *,
    seed: int | None = 7,
    choices: int = 1,
    tokens: int = TOKENS,
) -> tuple[list[Watched], Heard]:
    watched = [Watched(index, tokens) for index in range(choices)]
    answers: list[Choice] = [*watched]
    return watched, bench.submit(prompt, answers, seed=seed)[1]


def ask(
    bench: DecodeBench[Runner], prompt: Sequence[int] = PROMPT, *, choices: int = 1
) -> tuple[Tensor, int]:
    """All logits of an answer with a seed, and how many tokens of its prompt were known."""
    watched, heard = begin(bench, prompt, choices=choices)
    bench.run(heard)
    accepted = heard.answers[0]
    assert isinstance(accepted, Accepted)
    return torch.stack([row for each in watched for row in each.logits]), accepted.cached_tokens


def test_what_was_read_before_changes_no_bit(runner: Runner) -> None:
    bench = build_bench(runner)
    _, heard = begin(bench, PROMPT[: 2 * PIECE + 5], seed=None)  # not in pieces
    bench.run(heard)

    first, known_first = ask(bench)
    again, known_again = ask(bench)
    branched, known_branched = ask(bench, [*PROMPT[: 3 * PIECE + 3], 5, 6, 7])

    assert (known_first, known_again, known_branched) == (0, 6 * PIECE, 3 * PIECE)
    assert torch.equal(first, again)
    assert torch.equal(branched, ask(build_bench(runner), [*PROMPT[: 3 * PIECE + 3], 5, 6, 7])[0])


def test_what_is_read_beside_it_changes_no_bit(runner: Runner) -> None:
    alone, _ = ask(build_bench(runner))
    bench = build_bench(runner)
    begin(bench, [3] * 40, seed=None, tokens=200)
    begin(bench, [4] * 7, seed=None, choices=3, tokens=200)
    begin(bench, [*PROMPT[:50], 9], seed=3, tokens=200)
    bench.loop.run_once()

    beside, _ = ask(bench)

    assert torch.equal(alone, beside)


def test_how_fast_the_machine_is_changes_no_bit(runner: Runner) -> None:
    slow, fast = build_bench(runner), build_bench(runner)
    slow.loop._pace.note(10**3, 10**3)
    fast.loop._pace.note(10**6, 1e-3)

    assert torch.equal(ask(slow)[0], ask(fast)[0])


def test_several_answers_are_repeated(runner: Runner) -> None:
    bench = build_bench(runner)

    first, again = (ask(bench, choices=4)[0] for _ in range(2))

    assert torch.equal(first, again)
    assert not torch.equal(first[:TOKENS], first[TOKENS : 2 * TOKENS])
