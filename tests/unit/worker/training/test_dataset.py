import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.core.job.child.job_spec import DatasetRef
from app.core.job.child.training_events import Failed
from app.core.job.training_config import OverlongRowBehavior
from tests.tiny import CHAT_TEMPLATE, REWRITING_TEMPLATE, build_tokenizer, chat_row
from worker.training.data.dataset import IGNORE_INDEX, TokenizedData
from worker.training.data.encoding import Encoder
from worker.training.preparation.findings import DataFile, FileFindings
from worker.training.preparation.tokenizing import tokenize_file


def tokenize(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    *,
    max_sequence_tokens: int = 64,
    overlong: OverlongRowBehavior = "truncate",
    chat_template: str | None = CHAT_TEMPLATE,
) -> tuple[FileFindings, str]:
    """Tokenize rows into `tmp_path/tokens`: what was found, and the digest."""
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reference = DatasetRef(
        file_id="file-1", filename="mine.jsonl", sha256="e" * 64, bytes=1, examples=len(rows)
    )
    return tokenize_file(
        DataFile(source, reference, "training_file"),
        tmp_path / "tokens",
        Encoder(build_tokenizer(chat_template), today=date(2026, 1, 31)),
        max_sequence_tokens=max_sequence_tokens,
        overlong=overlong,
    )


def read(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> TokenizedData:
    _, sha256 = tokenize(tmp_path, rows, **settings)
    return TokenizedData(tmp_path / "tokens", "training_file", sha256=sha256)


def failure_of(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Failed:
    failure = tokenize(tmp_path, rows, **settings)[0].failure()
    assert failure is not None
    return failure.as_event()


def warnings(findings: FileFindings) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Count and lines of each warning, by its code. That of few examples is left out."""
    found = {w.code: (w.count, w.lines) for w in findings.warnings()}
    found.pop("few_examples", None)
    return found


def test_labels_are_the_learned_tokens_and_nothing_else(tmp_path: Path) -> None:
    row = read(tmp_path, [{"prompt": "ab", "completion": "c"}]).read(0)

    end = build_tokenizer().eos_token_id
    assert row.input_ids.tolist()[-1] == end
    assert row.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, row.input_ids[2], end]


def test_the_first_token_of_a_text_is_never_learned(tmp_path: Path) -> None:
    row = read(tmp_path, [{"text": "abc"}]).read(0)

    assert row.labels[0] == IGNORE_INDEX
    assert row.labels[1:].tolist() == row.input_ids[1:].tolist()


def test_every_row_is_there_in_its_order_with_its_length(tmp_path: Path) -> None:
    data = read(tmp_path, [{"text": "x" * (1 + i % 50)} for i in range(700)])

    assert len(data) == 700
    assert data.lengths.tolist() == [2 + i % 50 for i in range(700)]
    assert data.learned.tolist() == [1 + i % 50 for i in range(700)]
    assert data.lines.tolist() == list(range(1, 701))
    assert len(data.read(699).input_ids) == data.lengths[699]


def test_what_there_is_to_learn_is_said_in_one_sentence(tmp_path: Path) -> None:
    findings, _ = tokenize(tmp_path, [{"text": "x" * (1 + i % 50)} for i in range(700)])

    assert [note.message for note in findings.notes()] == [
        "mine.jsonl: 700 examples, 18,550 tokens, 17,850 of them learned, 0 examples truncated."
    ]


def test_the_rows_lie_in_a_file_that_is_mapped(tmp_path: Path) -> None:
    data = read(tmp_path, [{"text": "abc"}])

    assert len(data) == 1
    assert str(tmp_path / "tokens" / "training_file.tokens") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["shorter", "longer", "uneven", "empty"])
def test_files_that_do_not_belong_together_are_not_opened(tmp_path: Path, damage: str) -> None:
    data = read(tmp_path, [{"text": "abc"}, {"text": "defg"}])
    name = "rows" if damage == "uneven" else "tokens"
    path = tmp_path / "tokens" / f"training_file.{name}"
    content = path.read_bytes()
    damaged = {"shorter": content[:-4], "longer": content * 2, "uneven": content[:-4], "empty": b""}
    path.unlink()
    path.write_bytes(damaged[damage])

    with pytest.raises(ValueError, match=r"."):
        TokenizedData(tmp_path / "tokens", "training_file", sha256=data.sha256)


def test_the_end_of_a_long_row_is_cut_off_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "x" * 70}, {"text": "x" * 63}]

    findings, _ = tokenize(tmp_path, rows)
    data = read(tmp_path, rows)

    assert data.lengths.tolist() == [64, 64]
    assert data.read(0).input_ids[-1] != build_tokenizer().eos_token_id
    assert data.read(1).input_ids[-1] == build_tokenizer().eos_token_id
    assert findings.lost_learned_tokens == 7
    assert warnings(findings) == {"truncated": (1, (1,)), "stop_token_cut_off": (1, (1,))}
    assert next(iter(findings.warnings())).message == (
        "Examples longer than 64 tokens: 1. Their ends were cut off, with 7 learned tokens. "
        "Raise context_length, or shorten them."
    )


def test_each_answer_that_loses_its_end_is_counted(tmp_path: Path) -> None:
    answers = ("b", "c" * 60, "d")
    turns = [message for answer in answers for message in chat_row("a", answer)["messages"]]

    findings, _ = tokenize(tmp_path, [{"messages": turns}])

    assert findings.lost_ends.count == 2


def test_a_long_row_is_left_out_where_asked(tmp_path: Path) -> None:
    rows = [{"text": "x" * 64}, {"text": "short"}]

    findings, _ = tokenize(tmp_path, rows, overlong="drop")
    data = read(tmp_path, rows, overlong="drop")

    assert data.lengths.tolist() == [6]
    assert data.lines.tolist() == [2]
    assert findings.lost_learned_tokens == 64
    assert warnings(findings) == {"dropped": (1, (1,))}


def test_long_rows_fail_the_job_where_asked_and_are_all_named(tmp_path: Path) -> None:
    rows = [{"text": "fine"}, *({"text": "x" * 70} for _ in range(60))]

    failed = failure_of(tmp_path, rows, overlong="error")

    assert (failed.code, failed.param) == ("row_too_long", "training_file")
    assert failed.message.startswith("60 examples of mine.jsonl are longer than 64 tokens.")
    assert [problem.line for problem in failed.errors] == list(range(2, 52))
    assert failed.errors[0].message == "The example has 71 tokens; the limit is 64."


def test_rows_of_which_nothing_is_left_to_learn_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [chat_row("long " * 20, "never read"), chat_row("short?", "read")] * 12

    findings, _ = tokenize(tmp_path, rows)

    assert findings.examples == 12
    assert warnings(findings)["nothing_to_learn"] == (12, tuple(range(1, 24, 2)))


def test_answers_that_become_rows_of_their_own_are_counted(tmp_path: Path) -> None:
    two_turns = {"messages": chat_row("a", "b")["messages"] + chat_row("c", "d")["messages"]}
    rows = [two_turns, chat_row("long " * 20, "never read"), two_turns, chat_row("e", "f")]

    findings, _ = tokenize(tmp_path, rows, max_sequence_tokens=55, chat_template=REWRITING_TEMPLATE)

    assert findings.examples == 3
    assert [note.message for note in findings.notes()][1].startswith(
        "mine.jsonl: 2 conversations became 4 examples, one for each learned "
    )
    assert warnings(findings)["truncated"] == (3, (1, 2, 3))
    assert warnings(findings)["nothing_to_learn"] == (3, (1, 2, 3))


def test_answers_that_the_template_does_not_write_whole_are_learned_and_counted(
    tmp_path: Path,
) -> None:
    thoughtful = chat_row("4?", "2 + 2")
    thoughtful["messages"][-1]["reasoning_content"] = "Two and two."

    findings, _ = tokenize(tmp_path, [thoughtful, chat_row("5?", "3 + 2")] * 11)

    assert findings.examples == 22
    assert warnings(findings)["answer_not_whole"] == (11, tuple(range(1, 22, 2)))


def test_the_digest_of_the_data_is_that_of_its_tokens_and_of_what_is_learned(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": "ab", "completion": "c"}]
    same = read(tmp_path, rows)
    tokens = same.read(0).input_ids.tolist()
    again = read(tmp_path, rows)
    learned_more = read(tmp_path, [{"prompt": "a", "completion": "bc"}])

    assert tokens == learned_more.read(0).input_ids.tolist()
    assert same.sha256 == again.sha256 != learned_more.sha256


def test_the_digest_is_that_of_earlier_releases_whose_states_are_resumed(tmp_path: Path) -> None:
    data = read(tmp_path, [{"prompt": "ab", "completion": "c"}, {"text": "defg"}])

    digest = hashlib.sha256()
    for index in range(len(data)):
        row = data.read(index)
        for part in ([len(row.input_ids)], row.input_ids, row.labels):
            digest.update(np.array(part, np.int32).tobytes())
    assert data.sha256 == digest.hexdigest()


def test_a_file_of_which_nothing_can_be_learned_is_refused(tmp_path: Path) -> None:
    failed = failure_of(tmp_path, [chat_row("long " * 20, "never read")])

    assert (failed.code, failed.param) == ("no_trainable_tokens", "training_file")


@pytest.mark.parametrize(
    ("template", "code"),
    [
        pytest.param(None, "no_chat_template", id="none"),
        pytest.param("{{ messages | length }}", "chat_template_unsupported", id="useless"),
    ],
)
def test_chats_that_the_model_cannot_render_are_refused_with_all_their_lines(
    tmp_path: Path, template: str | None, code: str
) -> None:
    failed = failure_of(tmp_path, [chat_row("Hi", "Hello")] * 60, chat_template=template)

    assert (failed.code, failed.param) == (code, "training_file")
    assert failed.message.startswith("Line 1 of mine.jsonl")
    assert failed.message.endswith(" 59 other lines do not fit, either.")
    assert [problem.line for problem in failed.errors] == list(range(1, 51))
    assert {problem.code for problem in failed.errors} == {code}


def test_texts_need_no_chat_template(tmp_path: Path) -> None:
    assert len(read(tmp_path, [{"text": "abc"}], chat_template=None)) == 1


def test_rows_are_arrays_of_whole_numbers(tmp_path: Path) -> None:
    row = read(tmp_path, [{"text": "abc"}]).read(np.int64(0).item())

    assert np.issubdtype(row.input_ids.dtype, np.integer)
    assert np.issubdtype(row.labels.dtype, np.integer)
