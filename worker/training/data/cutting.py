"""The rule for examples that are too long, and for those with nothing to learn."""

from dataclasses import dataclass

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


def cut(encoded: Encoded, *, max_tokens: int, overlong: OverlongRowBehavior) -> CutExample:
    """Apply the rule to an example.

    Args:
        encoded: all tokens of the example.
        max_tokens: maximum length of an example.
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
