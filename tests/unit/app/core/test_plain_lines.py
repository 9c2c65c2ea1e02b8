"""What is recognised at a glance is what a closer look finds."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.dataset.checker import DatasetChecker, find_plain_format
from app.core.dataset.formats import ChatExample, DatasetFormat, LineError
from app.core.dataset.rows.parsing import parse_line
from tests.builders import CHAT_LINE, TEXT_LINE
from tests.effort import effort

_SCALARS = st.sampled_from(["", "a", "\0", "user", None, True, 0, 1, 1.5, 1e308])
_CONTENTS = _SCALARS | st.just([{"type": "text", "text": "a"}])
_ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "x", "", None, 1, []])
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": _ROLES,
        "content": _CONTENTS,
        "weight": st.sampled_from([0, 1, 2, None, 1.0]),
        "name": _SCALARS,
        "tool_calls": st.just([]) | st.just([{"id": "a"}]) | _SCALARS,
        "other": _SCALARS,
    },
)
_USUAL_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": _SCALARS}
)
_ROWS = st.fixed_dictionaries(
    {},
    optional={
        "text": _CONTENTS,
        "prompt": _SCALARS,
        "completion": _SCALARS,
        "instruction": _SCALARS,
        "input": _SCALARS,
        "output": _SCALARS,
        "chosen": _SCALARS,
        "rejected": _SCALARS,
        "messages": st.lists(_USUAL_MESSAGES | _MESSAGES | _SCALARS, max_size=3) | _SCALARS,
        "tools": st.just([]) | st.just([{"type": "function"}]) | _SCALARS,
        "other": _SCALARS,
    },
)


_TEXTS = st.sampled_from(["", "a", "\0", None])
_TEXT_ROWS = (
    st.fixed_dictionaries(
        {"instruction": _TEXTS, "output": _TEXTS}, optional={"input": _TEXTS, "other": _TEXTS}
    )
    | st.fixed_dictionaries({"prompt": _TEXTS, "chosen": _TEXTS, "rejected": _TEXTS})
    | st.fixed_dictionaries({"prompt": _TEXTS, "completion": _TEXTS})
)
_ALL_ROWS = _ROWS | _TEXT_ROWS | st.fixed_dictionaries({"messages": st.lists(_USUAL_MESSAGES)})


@given(_ALL_ROWS | _CONTENTS)
@settings(max_examples=effort(500, long=3000))
def test_what_is_recognised_is_an_example_of_that_format_without_tools(row: Any) -> None:
    line = json.dumps(row).encode()
    format_ = find_plain_format(line)

    if format_ is not None:
        found, example = parse_line(line)
        assert found is format_
        assert not (isinstance(example, ChatExample) and example.uses_tools)


@pytest.mark.parametrize(
    ("line", "format_"),
    [
        (TEXT_LINE, DatasetFormat.TEXT),
        (b'{"prompt": "", "completion": "a"}', DatasetFormat.PROMPT_COMPLETION),
        (CHAT_LINE, DatasetFormat.MESSAGES),
        (b'{"instruction": "a", "output": "b"}', DatasetFormat.INSTRUCTION),
        (b'{"instruction": "a", "input": "", "output": "b"}', DatasetFormat.INSTRUCTION),
        (b'{"prompt": "", "chosen": "a", "rejected": "b"}', DatasetFormat.PREFERENCE),
    ],
    ids=["text", "pair", "chat", "instruction", "instruction with input", "preference"],
)
def test_what_is_usual_is_recognised(line: bytes, format_: DatasetFormat) -> None:
    assert find_plain_format(line) is format_


@given(_ALL_ROWS)
@settings(max_examples=effort(500, long=3000))
def test_a_plain_row_of_a_table_is_taken_only_where_its_line_is(row: dict[str, Any]) -> None:
    line = json.dumps(row).encode() + b"\n"
    by_row, by_line = DatasetChecker(), DatasetChecker()
    for checker in (by_row, by_line):
        checker.feed(line)  # settles the format, if it is an example

    if by_row.feed_plain_row(row):
        by_line.feed(line)

        assert by_row.finish() == by_line.finish()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"text": "a", "text": "b"}', id="repeated key"),
        pytest.param(b'{"text": "\\u0000"}', id="nul"),
        pytest.param(b'{"text": 1e999}', id="infinity"),
        pytest.param(b'{"messages": []}', id="no message"),
        pytest.param(b'{"messages": [{"role": "user", "content": "a"}]}', id="no answer"),
    ],
)
def test_what_is_wrong_is_not_recognised(line: bytes) -> None:
    assert find_plain_format(line) is None
    with pytest.raises(LineError):
        parse_line(line)
