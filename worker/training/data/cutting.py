"""The rule for examples that are too long, and for those with nothing to learn.

The two answers of a preference are one example: both are left out, or neither is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.core.dataset.formats import ParsedExample, PreferenceExample
from app.core.dataset.tokenizing.messages import Outcome
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.encoding import Encoded


@dataclass(frozen=True, slots=True)
class CutExample:
    """The tokens that are trained on, if the outcome is `kept` or `truncated`."""

    outcome: Outcome
    input_ids: list[int]
    is_learned: list[bool]
    """Whether each token is learned. The first never is, because nothing predicts it."""


def group_rows(example: ParsedExample, rows: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    """The rows of a line by examples: each by itself, or both of a preference together."""
    return [rows] if isinstance(example, PreferenceExample) else [[row] for row in rows]


_SEVERITY: tuple[Outcome, ...] = ("too_long", "dropped", "nothing_to_learn")
"""Outcomes of one answer that are also those of the other one."""


def cut_example(
    rows: Sequence[Encoded], *, max_tokens: int, overlong: OverlongRowBehavior
) -> list[CutExample]:
    """Apply the rule to an example: to its row, or to its two answers if it is a preference.

    Args:
        rows: all tokens of the example.
        max_tokens: maximum length of a row.
        overlong: what happens to a longer one.

    Returns:
        The rows. If they are left out or fail the job, they have the same outcome.
    """
    kept = [cut(row, max_tokens=max_tokens, overlong=overlong) for row in rows]
    outcomes = {row.outcome for row in kept}
    shared = next((outcome for outcome in _SEVERITY if outcome in outcomes), None)
    if shared is None and len(kept) > 1 and kept[0].input_ids == kept[1].input_ids:
        shared = "equal_answers"
    return kept if shared is None else [replace(row, outcome=shared) for row in kept]


def cut(encoded: Encoded, *, max_tokens: int, overlong: OverlongRowBehavior) -> CutExample:
    """Apply the rule to one row.

    Args:
        encoded: all tokens of the row.
        max_tokens: maximum length of a row.
        overlong: what happens to a longer one.
    """
    is_too_long = len(encoded.input_ids) > max_tokens
    kept = max_tokens if overlong == "truncate" else len(encoded.input_ids)
    is_learned = encoded.is_learned[:kept]
    is_learned[:1] = [False] * len(is_learned[:1])
    outcome: Outcome = "truncated" if is_too_long else "kept"
    if is_too_long and overlong != "truncate":
        outcome = "dropped" if overlong == "drop" else "too_long"
    elif not any(is_learned):
        outcome = "nothing_to_learn"
    return CutExample(outcome, encoded.input_ids[:kept], is_learned)
