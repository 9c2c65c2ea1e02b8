"""Scores of answers, against cases that were computed by hand."""

import pytest

from app.core.job.scores.report import Scores
from worker.scoring.metrics import is_exact_match, is_json, score, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat sat.", "a cat sat down", 0.8),  # 2 of 2 words, 2 of 3: 2 * 2 / (2 + 3)
        ("no no no", "no", 0.5),  # 1 of 3 words, 1 of 1: 2 * 1 / (3 + 1)
        ("no", "no no no", 0.5),
        ("no no yes", "no no maybe", 2 / 3),
        ("Hello,  WORLD!", "hello world", 1.0),
        ("x y", "z", 0.0),
        ("", "z", 0.0),
        ("z", "", 0.0),
        ("the", "", 1.0),  # no word is left of either
        ("thé au lait", "the au lait", 0.8),  # `thé` is no article: 2 * 2 / (3 + 2)
        ("don't", "dont", 1.0),
        ("你好 世界", "你好", 2 / 3),
    ],
)
def test_token_f1_is_that_of_squad(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "is_equal"), [("Ho", True), (" Ho\n", True), ("ho", False), ("Ho.", False)]
)
def test_an_exact_match_forgives_only_whitespace_around_it(answer: str, *, is_equal: bool) -> None:
    assert is_exact_match(answer, "Ho ") is is_equal


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('{"a": 1}', True),
        (" [1, 2]\n", True),
        ("{}", True),
        ('"a"', False),
        ("3", False),
        ("", False),
        ('{"a": 1', False),
        ('{"a": NaN}', False),
        ('{"a": 1, "a": 2}', False),
        ("```json\n{}\n```", False),
        ('{"a": "\ud800"}', False),
    ],
)
def test_json_is_an_object_or_an_array_and_nothing_around_it(text: str, *, is_valid: bool) -> None:
    assert is_json(text) is is_valid


def test_scores_are_means_and_json_counts_where_the_reference_is_json() -> None:
    pairs = [
        ("Ho", "Ho"),
        ("no no no", "no"),
        ("x", '{"a": 1}'),
        ('{"b": 2}', '{"a": 1}'),
    ]

    assert score(pairs) == Scores(
        exact_match=0.25,
        token_f1=0.375,  # (1 + 0.5 + 0 + 0) / 4: the words of the last pair are `b 2` and `1`
        valid_json=0.5,
    )
    assert score(pairs[:2]) == Scores(exact_match=0.5, token_f1=0.75, valid_json=None)
    assert score([]) is None
