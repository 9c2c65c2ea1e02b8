"""What is recognised at a glance is what a closer look finds."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.dataset.checker import DatasetChecker
from app.core.dataset.formats import ChatExample, DatasetFormat, LineError, PreferenceExample
from app.core.dataset.rows.parsing import parse_line
from app.core.dataset.rows.plain import is_plain_line
from app.core.dataset.tables.rows import as_line
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
_LISTS = st.lists(_USUAL_MESSAGES, max_size=2) | _SCALARS
_TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "tool", "x", None]), "value": _SCALARS}
)
_LIST_ROWS = (
    st.fixed_dictionaries({"messages": st.lists(_USUAL_MESSAGES)})
    | st.fixed_dictionaries({"conversations": st.lists(_TURNS)}, optional={"id": _SCALARS})
    | st.fixed_dictionaries({"prompt": _LISTS, "chosen": _LISTS, "rejected": _LISTS})
    | st.sampled_from(["output", "completion"]).flatmap(
        lambda form: st.fixed_dictionaries(
            {
                "input": st.fixed_dictionaries({"messages": _LISTS}),
                f"preferred_{form}": _LISTS,
                f"non_preferred_{form}": _LISTS,
            }
        )
    )
)
_ALL_ROWS = _ROWS | _TEXT_ROWS | _LIST_ROWS
_TURN = b'{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}'
_ANSWER = b'[{"role": "assistant", "content": "b"}]'
_OTHER_ANSWER = b'[{"role": "assistant", "content": "c"}]'


def find_plain_format(line: bytes) -> DatasetFormat | None:
    """The only format of which a line is a plain example, if any."""
    formats = [format_ for format_ in DatasetFormat if is_plain_line(line, format_)]
    assert len(formats) <= 1
    return formats[0] if formats else None


@given(_ALL_ROWS | _CONTENTS)
@settings(max_examples=effort(500, long=3000))
def test_what_is_recognised_is_an_example_of_that_format_without_tools(row: Any) -> None:
    line = json.dumps(row).encode()
    format_ = find_plain_format(line)

    if format_ is not None:
        found, example = parse_line(line)
        assert found is format_
        chat = example.preferred if isinstance(example, PreferenceExample) else example
        assert not (isinstance(chat, ChatExample) and chat.uses_tools)


@pytest.mark.parametrize(
    ("line", "format_"),
    [
        (TEXT_LINE, DatasetFormat.TEXT),
        (b'{"prompt": "", "completion": "a"}', DatasetFormat.PROMPT_COMPLETION),
        (CHAT_LINE, DatasetFormat.MESSAGES),
        (b'{"instruction": "a", "output": "b"}', DatasetFormat.INSTRUCTION),
        (b'{"instruction": "a", "input": "", "output": "b"}', DatasetFormat.INSTRUCTION),
        (b'{"conversations": [%b]}' % _TURN, DatasetFormat.SHAREGPT),
        (b'{"id": "1", "conversations": [%b]}' % _TURN, DatasetFormat.SHAREGPT),
        (b'{"prompt": "", "chosen": "a", "rejected": "b"}', DatasetFormat.PREFERENCE),
        (
            b'{"prompt": [{"role": "user", "content": "a"}], "chosen": %b, "rejected": %b}'
            % (_ANSWER, _OTHER_ANSWER),
            DatasetFormat.PREFERENCE,
        ),
        (
            b'{"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": %b, '
            b'"non_preferred_output": %b}' % (_ANSWER, _OTHER_ANSWER),
            DatasetFormat.PREFERENCE,
        ),
    ],
)
def test_what_is_usual_is_recognised(line: bytes, format_: DatasetFormat) -> None:
    assert find_plain_format(line) is format_


@given(_ALL_ROWS)
@settings(max_examples=effort(500, long=3000))
def test_a_plain_row_of_a_table_is_taken_only_where_its_line_is(row: dict[str, Any]) -> None:
    by_row, by_line = checkers_that_know_the_format_of(row)

    if by_row.feed_plain_row(row):
        by_line.feed(as_line(row))

        assert by_row.finish() == by_line.finish()


@given(_TEXT_ROWS.flatmap(lambda row: st.lists(st.fixed_dictionaries(dict.fromkeys(row, _TEXTS)))))
@settings(max_examples=effort(500, long=3000))
def test_plain_rows_of_a_table_are_taken_together_only_where_their_lines_are(
    rows: list[dict[str, Any]],
) -> None:
    usual = dict.fromkeys(rows[0] if rows else ["text"], "a")
    by_row, by_line = checkers_that_know_the_format_of(usual)
    columns = {name: [row[name] for row in [usual, *rows]] for name in usual}

    if by_row.feed_plain_rows(columns):
        by_line.feed(b"".join(map(as_line, [usual, *rows])))

        assert by_row.finish() == by_line.finish()


def checkers_that_know_the_format_of(row: dict[str, Any]) -> tuple[DatasetChecker, DatasetChecker]:
    checkers = DatasetChecker(), DatasetChecker()
    for checker in checkers:
        checker.feed(as_line(row))  # settles the format, if it is an example
    return checkers


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
