"""OpenAI's walk-through for chat data finds the errors on the lines where our report has them.

The walk-through is "Data preparation and analysis for chat model fine-tuning" of OpenAI's cookbook.
Its counts of tokens and its warnings about truncation need the job's tokenizer, which an upload
does not know.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from app.core.dataset.file_check import FileChecker

USER = {"role": "user", "content": "I fell off my bike today."}
ANSWER = {"role": "assistant", "content": "Then you got some air."}
KNOWN_KEYS = {"role", "content", "name", "function_call", "weight"}
KNOWN_ROLES = {"system", "user", "assistant", "function"}

GOOD: list[Any] = [
    {"messages": [{"role": "system", "content": "You are cheerful."}, USER, ANSWER]},
    {"messages": [USER, ANSWER]},
    {"messages": [USER | {"name": "alice"}, ANSWER | {"weight": 1}, USER, ANSWER]},
    {"messages": [USER, {"role": "assistant", "content": "Yes."}]},
    {"messages": [ANSWER]},
]
BAD: list[Any] = [
    "not a dictionary",
    [USER, ANSWER],
    {"messages": []},
    {"messages": None},
    {"messages": [{"content": "Who am I?"}, ANSWER]},
    {"messages": [USER, {"role": "assistant"}]},
    {"messages": [USER, ANSWER | {"contents": "twice"}]},
    {"messages": [{"role": "robot", "content": "Beep."}, ANSWER]},
    {"messages": [USER, {"role": "assistant", "content": ""}]},
    {"messages": [{"role": "user", "content": 5}, ANSWER]},
    {"messages": [USER]},
    {"messages": [{"role": "system", "content": "You are cheerful."}, USER]},
]

OURS = {
    "data_type": r"not_an_object ",
    "missing_messages_list": r"wrong_type messages$",
    "message_missing_key": r"(missing_field messages\[\d+\]\.content|bad_role .*'role' is missing)",
    "message_unrecognized_key": r"unknown_field messages\[\d+\]\.",
    "unrecognized_role": r"bad_role ",
    "missing_content": r"(missing|empty)_field .*content|wrong_type .*content",
    "example_missing_assistant_message": r"no_assistant_message ",
}
"""How our report says each of its errors: the code, the path, and for a missing role the message.
"""


def their_errors(row: Any) -> set[str]:
    """The walk-through's names for what is wrong with a row."""
    if not isinstance(row, dict):
        return {"data_type"}
    messages = row.get("messages")
    if not messages:
        return {"missing_messages_list"}
    found = {name for message in messages for name in their_errors_of_message(message)}
    if all(message.get("role") != "assistant" for message in messages):
        found.add("example_missing_assistant_message")
    return found


def their_errors_of_message(message: dict[str, Any]) -> Iterator[str]:
    if not {"role", "content"} <= message.keys():
        yield "message_missing_key"
    if message.keys() - KNOWN_KEYS:
        yield "message_unrecognized_key"
    if message.get("role") not in KNOWN_ROLES:
        yield "unrecognized_role"
    content = message.get("content")
    if not isinstance(content, str) or not (content or message.get("function_call")):
        yield "missing_content"


def our_errors(rows: list[Any]) -> tuple[int, dict[str, set[int]]]:
    """The number of good rows, and the lines on which the report has each of these errors."""
    checker = FileChecker()
    checker.feed("\n".join(json.dumps(row) for row in rows).encode())
    summary = checker.finish()
    found = [
        (problem.line, f"{problem.code} {problem.path}", problem.message)
        for problem in summary.problems
    ]
    lines = {
        name: {
            line
            for line, what, message in found
            if re.match(pattern, what) or re.match(pattern, f"{what} {message}")
        }
        for name, pattern in OURS.items()
    }
    return summary.examples, lines


def test_a_clean_dataset_has_no_errors_in_either() -> None:
    examples, lines = our_errors(GOOD)

    assert not any(lines.values())
    assert not any(their_errors(row) for row in GOOD)
    assert examples == len(GOOD)


def test_each_error_of_the_walk_through_is_on_the_same_lines_of_our_report() -> None:
    rows = GOOD + BAD
    theirs: dict[str, set[int]] = {name: set() for name in OURS}
    for line, row in enumerate(rows, start=1):
        for name in their_errors(row):
            theirs[name].add(line)

    examples, ours = our_errors(rows)

    assert ours == theirs
    assert all(theirs.values())
    assert examples == len(rows) - len(set[int]().union(*theirs.values()))
