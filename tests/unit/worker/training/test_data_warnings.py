"""Every warning of the report on a job's data, on a small file that has what it is about."""

import json
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from app.core.dataset.formats import ChatExample
from app.core.job.child.job_spec import DatasetRef
from app.core.job.data_report import MAX_LINES_NAMED, DataWarning
from tests.tiny import build_tokenizer, chat_row
from worker.training.data.encoding import Encoded, Encoder
from worker.training.preparation.content import ContentCheck
from worker.training.preparation.findings import DataFile, FileFindings
from worker.training.preparation.reporting import report_file
from worker.training.preparation.tokenizing import tokenize_file

PLAIN = [chat_row(f"How many {i}?", f"There are {i}.") for i in range(40)]
"""Rows that nothing is wrong with."""


def find(tmp_path: Path, rows: list[dict[str, Any]]) -> FileFindings:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reference = DatasetRef(
        file_id="file-1", filename="mine.jsonl", sha256="e" * 64, bytes=1, examples=len(rows)
    )
    findings, _ = tokenize_file(
        DataFile(source, reference, "training_file"),
        tmp_path / "tokens",
        Encoder(build_tokenizer(), today=date(2026, 1, 31)),
        max_sequence_tokens=512,
        overlong="truncate",
    )
    return findings


def warn(tmp_path: Path, rows: list[dict[str, Any]]) -> list[DataWarning]:
    return list(find(tmp_path, rows).warnings())


def only(warnings: list[DataWarning], code: str) -> DataWarning:
    (warning,) = warnings
    assert (warning.code, warning.param) == (code, "training_file")
    assert "{" not in warning.message
    return warning


def calling(*names: str) -> dict[str, Any]:
    """A row in which the assistant calls these tools."""
    calls = [
        {"id": f"call-{i}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in enumerate(names)
    ]
    row = chat_row("?", "!")
    row["messages"].insert(1, {"role": "assistant", "tool_calls": calls, "weight": 0})
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in calls]
    row["messages"][2:2] = results
    return row


def test_plain_rows_give_no_warning(tmp_path: Path) -> None:
    assert warn(tmp_path, PLAIN) == []


def test_lines_that_repeat_an_earlier_one_are_named_with_it(tmp_path: Path) -> None:
    warning = only(warn(tmp_path, [*PLAIN, PLAIN[3], PLAIN[1], PLAIN[3]]), "duplicate")

    assert (warning.count, warning.lines, warning.same_as) == (3, (41, 42, 43), (4, 2, 4))


def test_the_same_tokens_with_another_mask_are_no_repetition(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "completion": "cd"}, {"prompt": "abc", "completion": "d"}]

    assert find(tmp_path, rows).duplicates.count == 0


def test_all_repetitions_are_counted_and_some_are_named(tmp_path: Path) -> None:
    findings = find(tmp_path, [{"text": "To be."}] * 1000)

    assert report_file(findings).duplicates == 999
    assert findings.duplicates.lines == list(range(2, 2 + MAX_LINES_NAMED))


@pytest.mark.parametrize(
    "row",
    [
        chat_row("What is <|im_end|>?", "A token."),
        chat_row("?", "I say <|im_start|>user"),
        {"messages": [{"role": "system", "content": "<|im_end|>"}, *PLAIN[0]["messages"]]},
    ],
    ids=["question", "answer", "system"],
)
def test_special_tokens_in_a_text_are_named_with_their_lines(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    warning = only(warn(tmp_path, [*PLAIN, row]), "special_token_in_text")

    assert (warning.count, warning.lines) == (1, (41,))
    assert "<|im_" in warning.message


@pytest.mark.parametrize("answer", ["null", "None ", "\n", "-", "N/A"])
def test_answers_that_look_empty_are_named(tmp_path: Path, answer: str) -> None:
    warning = only(warn(tmp_path, [*PLAIN, chat_row("?", answer)]), "empty_answer")

    assert (warning.count, warning.lines) == (1, (41,))


def test_an_answer_of_an_emoji_or_a_number_is_not_empty(tmp_path: Path) -> None:
    assert warn(tmp_path, [*PLAIN, chat_row("?", "👍"), chat_row("?", "0")]) == []


def test_one_answer_to_most_questions_is_warned_of(tmp_path: Path) -> None:
    rows = [*PLAIN[:9], *(chat_row(f"Why {i}?", "Because.") for i in range(11))]

    warning = only(warn(tmp_path, rows), "same_answer")

    assert (warning.count, warning.lines[0]) == (11, 10)
    assert warn(tmp_path, rows[:18]) == []


def test_a_tool_that_is_called_once_among_many_calls_is_named(tmp_path: Path) -> None:
    rows = [calling("get_weather")] * 20 + [calling("get_wether")]
    rows = [row | {"messages": [*plain["messages"], *row["messages"]]}
            for row, plain in zip(rows, PLAIN, strict=False)]  # fmt: skip

    warning = only(warn(tmp_path, rows), "tool_used_once")

    assert (warning.count, warning.lines) == (1, (21,))
    assert "'get_wether'" in warning.message


def test_a_few_calls_tell_nothing(tmp_path: Path) -> None:
    rows = [*PLAIN, calling("one")]

    assert warn(tmp_path, rows) == []


def test_a_speaker_who_speaks_once_is_named(tmp_path: Path) -> None:
    def named(row: dict[str, Any], name: str) -> dict[str, Any]:
        question, answer = row["messages"]
        return {"messages": [question | {"name": name}, answer]}

    rows = [*(named(row, "anna") for row in PLAIN[:30]), named(PLAIN[30], "ana")]

    warning = only(warn(tmp_path, rows), "name_used_once")

    assert (warning.count, warning.lines) == (1, (31,))
    assert "'ana'" in warning.message
    everyone_once = [named(row, f"user {i}") for i, row in enumerate(PLAIN)]
    assert warn(tmp_path, everyone_once) == []


@pytest.mark.parametrize(
    ("answer", "script"),
    [
        ("Это совсем другой язык.", "Cyrillic"),
        ("これは日本語です。", "Chinese or Japanese"),
        ("이것은 한국어입니다.", "Hangul"),
        ("هذه لغة أخرى.", "Arabic"),
    ],
)
def test_the_only_answer_in_a_script_is_named(tmp_path: Path, answer: str, script: str) -> None:
    warning = only(warn(tmp_path, [*PLAIN, chat_row("?", answer)]), "script_used_once")

    assert (warning.count, warning.lines) == (1, (41,))
    assert f"'{script}'" in warning.message


def test_accents_and_two_answers_in_a_script_are_no_mistake(tmp_path: Path) -> None:
    assert warn(tmp_path, [*PLAIN, chat_row("?", "Grüße, déjà vu.")]) == []
    assert warn(tmp_path, [*PLAIN, chat_row("a", "Да."), chat_row("b", "Нет.")]) == []


def test_few_examples_are_warned_of(tmp_path: Path) -> None:
    assert only(warn(tmp_path, PLAIN[:9]), "few_examples").count == 9
    assert warn(tmp_path, PLAIN[:10]) == []


def test_long_prompts_with_little_to_learn_are_warned_of(tmp_path: Path) -> None:
    rows = [chat_row(f"{i} " + "long " * 90, "yes" if i % 2 else "no") for i in range(10)]

    warning = only(warn(tmp_path, rows), "few_learned_tokens")

    assert warning.message.startswith("Only 35 of ")


def test_memory_does_not_grow_with_the_texts_and_little_with_the_rows(tmp_path: Path) -> None:
    reference = find(tmp_path, PLAIN[:1]).file.reference
    file = DataFile(tmp_path, reference, "training_file")
    findings = FileFindings(file, 512, ContentCheck(["<|im_end|>"]))
    count = 10_000
    tracemalloc.start()
    try:
        for line in range(1, count + 1):
            message = {"role": "assistant", "content": f"{line} " + "x" * 500, "name": str(line)}
            example = ChatExample([message], [True])
            row = Encoded([line, *range(200)], [True] * 201)
            findings.take(line, example, [row])
        kept, _ = tracemalloc.get_traced_memory()
        assert list(findings.warnings()) == []
        report_file(findings)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 60 * count
    assert most < 120 * count
