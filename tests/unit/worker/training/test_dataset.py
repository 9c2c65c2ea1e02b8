import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.core.job.training_config import OverlongRowBehavior
from tests.tiny import CHAT_TEMPLATE, REWRITING_TEMPLATE, build_tokenizer, chat_row
from worker.training.data.dataset import IGNORE_INDEX, DataFile, TokenizedData, tokenize_file
from worker.training.data.encoding import Encoder
from worker.training.failures import TrainingFailedError


def tokenize(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    *,
    max_sequence_tokens: int = 64,
    overlong: OverlongRowBehavior = "truncate",
    chat_template: str | None = CHAT_TEMPLATE,
) -> TokenizedData:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tokenize_file(
        DataFile(source, "mine.jsonl", "training_file"),
        tmp_path / "tokens" / "data.arrow",
        Encoder(build_tokenizer(chat_template), today=date(2026, 1, 31)),
        max_sequence_tokens=max_sequence_tokens,
        overlong=overlong,
    )


def notes(data: TokenizedData) -> list[tuple[str, str]]:
    return [(note.level, note.message) for note in data.report.notes()]


def test_labels_are_the_learned_tokens_and_nothing_else(tmp_path: Path) -> None:
    row = tokenize(tmp_path, [{"prompt": "ab", "completion": "c"}]).read(0)

    end = build_tokenizer().eos_token_id
    assert row.input_ids.tolist()[-1] == end
    assert row.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, row.input_ids[2], end]


def test_the_first_token_of_a_text_is_never_learned(tmp_path: Path) -> None:
    row = tokenize(tmp_path, [{"text": "abc"}]).read(0)

    assert row.labels[0] == IGNORE_INDEX
    assert row.labels[1:].tolist() == row.input_ids[1:].tolist()


def test_every_row_is_there_in_its_order_with_its_length(tmp_path: Path) -> None:
    data = tokenize(tmp_path, [{"text": "x" * (1 + i % 50)} for i in range(700)])

    assert len(data) == 700
    assert data.lengths.tolist() == [2 + i % 50 for i in range(700)]
    assert len(data.read(699).input_ids) == data.lengths[699]
    assert notes(data)[0] == (
        "info",
        "mine.jsonl: 700 examples, 18,550 tokens, 17,850 of them learned, 0 examples truncated.",
    )


def test_the_rows_lie_in_a_file_that_is_mapped(tmp_path: Path) -> None:
    data = tokenize(tmp_path, [{"text": "abc"}])

    assert len(data) == 1
    assert str(tmp_path / "tokens" / "data.arrow") in Path("/proc/self/maps").read_text()


def test_the_end_of_a_long_row_is_cut_off_and_counted(tmp_path: Path) -> None:
    data = tokenize(tmp_path, [{"text": "x" * 64}, {"text": "x" * 63}])

    assert data.lengths.tolist() == [64, 64]
    assert data.read(0).input_ids[-1] != build_tokenizer().eos_token_id
    assert data.read(1).input_ids[-1] == build_tokenizer().eos_token_id
    assert notes(data)[1:] == [
        ("warn", "mine.jsonl: 1 examples are longer than 64 tokens; their ends were cut off.")
    ]


def test_a_long_row_is_left_out_where_asked(tmp_path: Path) -> None:
    data = tokenize(tmp_path, [{"text": "x" * 64}, {"text": "short"}], overlong="drop")

    assert data.lengths.tolist() == [6]
    assert notes(data)[1:] == [
        ("warn", "mine.jsonl: 1 examples are longer than 64 tokens and were left out.")
    ]


def test_long_rows_fail_the_job_where_asked_and_are_all_named(tmp_path: Path) -> None:
    rows = [{"text": "fine"}, *({"text": "x" * 70} for _ in range(60))]

    with pytest.raises(TrainingFailedError) as caught:
        tokenize(tmp_path, rows, overlong="error")

    failed = caught.value.as_event()
    assert (failed.code, failed.param) == ("row_too_long", "training_file")
    assert failed.message.startswith("60 examples of mine.jsonl are longer than 64 tokens.")
    assert [problem.line for problem in failed.errors] == list(range(2, 52))
    assert failed.errors[0].message == "The example has 71 tokens; the limit is 64."


def test_rows_of_which_nothing_is_left_to_learn_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [chat_row("long " * 20, "never read"), chat_row("short?", "read")] * 12

    data = tokenize(tmp_path, rows)

    assert len(data) == 12
    level, message = notes(data)[-1]
    assert level == "warn"
    assert message == (
        "mine.jsonl: 12 examples have no token left to learn and were left out "
        "(lines 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ...)."
    )


def test_answers_that_become_rows_of_their_own_are_counted(tmp_path: Path) -> None:
    two_turns = {"messages": chat_row("a", "b")["messages"] + chat_row("c", "d")["messages"]}
    rows = [two_turns, chat_row("long " * 20, "never read"), two_turns, chat_row("e", "f")]

    data = tokenize(tmp_path, rows, max_sequence_tokens=55, chat_template=REWRITING_TEMPLATE)

    assert len(data) == 3
    split, cut, left_out = [message for _, message in notes(data)[1:]]
    assert split.startswith("mine.jsonl: 2 conversations became 4 examples, one for each learned ")
    assert cut.startswith("mine.jsonl: 3 examples are longer than 55 tokens")
    assert left_out.endswith("and were left out (lines 1, 2, 3).")


def test_answers_that_the_template_does_not_write_whole_are_learned_and_counted(
    tmp_path: Path,
) -> None:
    thoughtful = chat_row("4?", "2 + 2")
    thoughtful["messages"][-1]["reasoning_content"] = "Two and two."

    data = tokenize(tmp_path, [thoughtful, chat_row("5?", "3 + 2")] * 11)

    assert len(data) == 22
    ((level, message),) = notes(data)[1:]
    assert level == "warn"
    assert message.startswith("mine.jsonl: in 11 conversations, the chat template leaves out ")
    assert message.endswith(" is learned (lines 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ...).")


def test_the_digest_of_the_data_is_that_of_its_tokens_and_of_what_is_learned(
    tmp_path: Path,
) -> None:
    same, again = (tokenize(tmp_path, [{"prompt": "ab", "completion": "c"}]) for _ in range(2))
    learned_more = tokenize(tmp_path, [{"prompt": "a", "completion": "bc"}])

    assert same.read(0).input_ids.tolist() == learned_more.read(0).input_ids.tolist()
    assert same.sha256 == again.sha256 != learned_more.sha256


def test_a_file_of_which_nothing_can_be_learned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError) as caught:
        tokenize(tmp_path, [chat_row("long " * 20, "never read")])

    failed = caught.value.as_event()
    assert (failed.code, failed.param) == ("no_trainable_tokens", "training_file")


@pytest.mark.parametrize(
    ("template", "code"),
    [
        pytest.param(None, "no_chat_template", id="none"),
        pytest.param("{{ messages | length }}", "chat_template_unsupported", id="useless"),
    ],
)
def test_a_chat_that_the_model_cannot_render_is_refused_with_its_line(
    tmp_path: Path, template: str | None, code: str
) -> None:
    with pytest.raises(TrainingFailedError) as caught:
        tokenize(tmp_path, [chat_row("Hi", "Hello")], chat_template=template)

    failed = caught.value.as_event()
    assert (failed.code, failed.param) == (code, "training_file")
    assert failed.message.startswith("Line 1 of mine.jsonl")
    assert [(problem.line, problem.code) for problem in failed.errors] == [(1, code)]


def test_texts_need_no_chat_template(tmp_path: Path) -> None:
    assert len(tokenize(tmp_path, [{"text": "abc"}], chat_template=None)) == 1


def test_rows_are_arrays_of_whole_numbers(tmp_path: Path) -> None:
    row = tokenize(tmp_path, [{"text": "abc"}]).read(np.int64(0).item())

    assert np.issubdtype(row.input_ids.dtype, np.integer)
    assert np.issubdtype(row.labels.dtype, np.integer)
