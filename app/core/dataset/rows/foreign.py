"""Recognises rows that belong to something else, so that one sentence says what they are."""

from collections.abc import Mapping
from typing import Any

from app.core.dataset.formats import LineError
from app.core.dataset.rows.fields import is_list_of_objects
from app.core.dataset.rows.messages import CHAT_FIELDS, ROLES

_FOREIGN_ROWS = (
    (
        {"custom_id", "body"},
        "a request or an answer of the batch API",
        'Write the messages and the answer of each as {"messages": [...]}.',
    ),
    (
        {"item"},
        "a row of an evaluation",
        'Write what is to be learned as {"messages": [...]}.',
    ),
    (
        {"input_ids"},
        "a row of tokens",
        "Upload the text itself, because each base model has its own tokens.",
    ),
    (
        {"prompt", "completion", "label"},
        "a rated answer, as for KTO",
        "Keep only the rows with good answers, and remove 'label'.",
    ),
)
"""Fields that mark a foreign row, what it is, and what to do."""


def refuse_foreign_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that is valid elsewhere but has no use here.

    Raises:
        LineError: `unsupported_format`. Other rows of the file are of the same kind.
    """
    for marks, what, advice in _FOREIGN_ROWS:
        if marks <= row.keys():
            raise LineError("unsupported_format", f"This line is {what}. {advice}")
    graded = sorted(row.keys() - CHAT_FIELDS)
    if graded and _ends_without_answer(row.get("messages")):
        raise LineError(
            "unsupported_format",
            "This line looks like a row for reinforcement fine-tuning, which is not offered: it "
            f"has {graded[0][:80]!r} and does not end with an answer. Add the answer as an "
            f"assistant message, and remove {graded[0][:80]!r}.",
        )


def _ends_without_answer(messages: Any) -> bool:
    if not is_list_of_objects(messages) or not messages:
        return False
    roles = [message.get("role") for message in messages]
    return roles[-1] == "user" and all(role in ROLES for role in roles)
