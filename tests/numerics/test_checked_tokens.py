"""The check of a job's data, and the training that reads the tokens which it has made."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.job.artifacts import TOKEN_FILE_NAMES
from app.core.job.child.job_spec import TOKENS_NAME
from app.core.job.child.training_events import (
    Checked,
    Failed,
    Noted,
    Stepped,
    TrainingEvent,
    parse_event,
)
from app.core.manifest import sha256_of, verify
from tests.tiny import chat_row, write_job
from worker.training.check import check_data
from worker.training.preparation.tokenized_job import OWN_TOKENS_NAME
from worker.training.recipe import run_job

ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]

Check = Callable[..., tuple[Checked, list[str]]]
Train = Callable[..., list[TrainingEvent]]


@pytest.fixture
def check(base_model: Path, tmp_path: Path) -> Check:
    """Checks a job in `tmp_path/NAME` and returns the result, and the messages before it."""

    def check_in(
        name: str = "check", rows: list[dict[str, Any]] = ROWS, **settings: Any
    ) -> tuple[Checked, list[str]]:
        write_job(tmp_path / name, rows, base_model=base_model, task="check_data", **settings)
        return run_check(tmp_path / name)

    return check_in


def run_check(directory: Path) -> tuple[Checked, list[str]]:
    events: list[TrainingEvent] = []
    check_data(directory, events.append)
    *notes, last = events
    assert isinstance(last, Checked)
    return last, [note.message for note in notes if isinstance(note, Noted)]


def as_checked(checked: Checked) -> dict[str, Any]:
    """The result without the estimate, which depends on the speed of the machine."""
    result = checked.model_dump()
    assert result["report"].pop("estimate") is not None
    return result


def test_the_estimate_of_a_check_has_no_more_memory_than_is_for_jobs(check: Check) -> None:
    usual, _ = check()
    limited, _ = check("limited", memory_bytes=400_000_000)

    assert usual.report.estimate is not None
    assert limited.report.estimate is not None
    assert not any("fit into" in advice for advice in usual.report.estimate.advice)
    assert limited.report.estimate.advice[0].startswith("It does not fit into 0.4 GB")


@pytest.fixture
def train(base_model: Path, tmp_path: Path) -> Train:
    """Trains a job in `tmp_path/NAME`, with the tokens of an earlier check if there are any."""

    def train_in(
        name: str,
        rows: list[dict[str, Any]] = ROWS,
        *,
        tokens: Path | None = None,
        **settings: Any,
    ) -> list[TrainingEvent]:
        write_job(tmp_path / name, rows, base_model=base_model, epochs=1, **settings)
        if tokens is not None:
            shutil.copytree(tokens, tmp_path / name / TOKENS_NAME)
        events: list[TrainingEvent] = []
        run_job(tmp_path / name, events.append)
        return events

    return train_in


def losses(events: list[TrainingEvent]) -> list[float | None]:
    rows = (event.metrics for event in events if isinstance(event, Stepped))
    return [loss for row in rows for loss in (row.train_loss, row.valid_loss)]


def messages(events: list[TrainingEvent]) -> list[str]:
    return [event.message for event in events if isinstance(event, Noted)]


def data_digest(job: Path, step: int) -> str:
    return json.loads((job / f"out/resume-{step}/state.json").read_text())["data_sha256"]


def test_a_check_reports_on_the_data_and_leaves_its_tokens(check: Check, tmp_path: Path) -> None:
    checked, notes = check(validation=[chat_row("a", "b")])

    assert (checked.error, checked.directory) == (None, "out/tokens")
    training, validation = checked.report.training_file, checked.report.validation_file
    assert (training.file_id, training.filename) == ("file-train", "train.jsonl")
    assert (training.lines, training.examples, training.tokens) == (10, 10, 425)
    assert training.learned_tokens == 10 * len("It is .") + sum(range(10)) + 10
    lengths = training.tokens_per_example
    assert lengths is not None
    assert (lengths.min, lengths.median, lengths.mean, lengths.max) == (38, 42.5, 42.5, 47)
    assert [(bar.up_to_tokens, bar.examples) for bar in training.lengths] == [
        (16, 0), (32, 0), (64, 10)
    ]  # fmt: skip
    assert [(it.line, it.tokens) for it in training.longest][:2] == [(10, 47), (9, 46)]
    assert validation is not None
    assert validation.examples == 1
    assert checked.report.stop_tokens == ("<|im_end|>",)
    assert checked.report.warnings == ()
    assert checked.report.estimate is not None
    assert checked.report.estimate.tokens_per_epoch == 425
    assert [note.partition(" examples,")[0] for note in notes] == [
        "train.jsonl: 10", "validation.jsonl: 1"
    ]  # fmt: skip
    made = verify(tmp_path / "check" / "out" / "tokens")
    assert made.files.keys() < TOKEN_FILE_NAMES


@pytest.mark.parametrize(
    "settings",
    [{}, {"validation": ROWS[:3]}, {"validation_split": 0.3}, {"train_on": "everything"}],
    ids=["plain", "validation", "split", "everything"],
)
def test_a_training_reads_the_tokens_of_the_check_and_is_the_same_to_the_bit(
    check: Check, train: Train, tmp_path: Path, settings: dict[str, Any]
) -> None:
    _, notes = check(**settings)

    own = train("own", **settings)
    given = train("given", tokens=tmp_path / "check" / "out" / "tokens", **settings)

    assert losses(given) == losses(own)
    last = max(e.metrics.step for e in own if isinstance(e, Stepped))
    assert data_digest(tmp_path / "given", last) == data_digest(tmp_path / "own", last)
    for name in ("adapter_model.safetensors", "generation_config.json"):
        one, other = (tmp_path / job / "out" / f"step-{last}" / name for job in ("own", "given"))
        assert one.read_bytes() == other.read_bytes(), name
    assert messages(own)[: len(notes)] == notes
    assert not set(notes) & set(messages(given))
    assert (tmp_path / "own" / OWN_TOKENS_NAME).exists()
    assert not (tmp_path / "given" / OWN_TOKENS_NAME).exists(), "it tokenized again"


@pytest.mark.parametrize("what", ["training_file.tokens", "tokens.json", "manifest.json", "gone"])
def test_a_training_tokenizes_where_the_tokens_are_damaged(
    check: Check, train: Train, tmp_path: Path, what: str
) -> None:
    check()
    tokens = tmp_path / "check" / "out" / "tokens"
    if what == "gone":
        (tokens / "training_file.rows").unlink()
    else:
        content = bytearray((tokens / what).read_bytes())
        # In the manifest, the name of a file: a byte of the settings would not matter.
        place = content.find(b"training_file.tokens")
        content[place if place >= 0 else len(content) // 2] ^= 1
        (tokens / what).write_bytes(content)

    events = train("job", tokens=tokens)

    assert losses(events) == losses(train("own"))
    assert (tmp_path / "job" / OWN_TOKENS_NAME).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [*ROWS, chat_row("one", "more")]},
        {"max_sequence_tokens": 40},
        {"train_on": "last_assistant"},
    ],
)
def test_a_training_tokenizes_where_the_tokens_were_made_from_something_else(
    check: Check, train: Train, tmp_path: Path, changes: dict[str, Any]
) -> None:
    check()

    train("job", tokens=tmp_path / "check" / "out" / "tokens", **changes)

    assert (tmp_path / "job" / OWN_TOKENS_NAME).exists()


def test_hyperparameters_that_change_no_token_do_not_matter(
    check: Check, train: Train, tmp_path: Path
) -> None:
    check()

    train("job", tokens=tmp_path / "check" / "out" / "tokens", learning_rate=0.5, seed=3)

    assert not (tmp_path / "job" / OWN_TOKENS_NAME).exists()


def test_a_check_is_the_same_twice_whatever_a_killed_one_has_left(
    check: Check, tmp_path: Path
) -> None:
    first, _ = check("first")
    second, _ = check("second")
    digests = {p.name: sha256_of(p) for p in (tmp_path / "first/out/tokens").iterdir()}

    assert as_checked(second) == as_checked(first)
    assert {p.name: sha256_of(p) for p in (tmp_path / "second/out/tokens").iterdir()} == digests

    (tmp_path / "second/out/tokens").rename(tmp_path / "second/out/.tmp-tokens")
    (tmp_path / "second" / OWN_TOKENS_NAME / "training_file.tokens").write_bytes(b"half of it")

    assert as_checked(run_check(tmp_path / "second")[0]) == as_checked(first)
    assert {p.name: sha256_of(p) for p in (tmp_path / "second/out/tokens").iterdir()} == digests


def test_a_refused_job_has_a_report_and_no_tokens(check: Check, tmp_path: Path) -> None:
    checked, _ = check(max_sequence_tokens=40, overlong_row_behavior="error")

    assert checked.directory is None
    assert checked.error is not None
    assert (checked.error.code, checked.error.param) == ("row_too_long", "training_file")
    assert [problem.line for problem in checked.error.errors] == [4, 5, 6, 7, 8, 9, 10]
    assert checked.report.training_file.refusal == checked.error.message
    assert checked.report.training_file.lines == 10
    assert checked.report.estimate is None
    assert not (tmp_path / "check" / "out" / "tokens").exists()


def test_a_split_that_leaves_nothing_refuses_the_job(check: Check) -> None:
    checked, _ = check(rows=ROWS[:1], validation_split=0.5)

    assert checked.error is not None
    assert checked.error.code == "too_few_examples"
    assert checked.report.held_out is None


def test_what_is_held_out_is_counted(check: Check) -> None:
    checked, notes = check(validation_split=0.3)

    assert checked.report.held_out is not None
    assert checked.report.held_out.examples == 3
    assert 0 < checked.report.held_out.learned_tokens < checked.report.held_out.tokens
    assert "train.jsonl: 3 of 10 examples are held out to evaluate on" in notes[-1]


def test_a_base_model_without_an_end_of_text_token_fails_the_check(
    base_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(base_model, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    write_job(tmp_path / "job", ROWS, base_model=tmp_path / "model", task="check_data")
    events: list[TrainingEvent] = []

    check_data(tmp_path / "job", events.append)

    assert isinstance(events[-1], Failed)
    assert events[-1].code == "tokenizer_unsupported"


def test_a_child_that_only_checks_loads_no_weights(base_model: Path, tmp_path: Path) -> None:
    write_job(tmp_path / "job", ROWS, base_model=base_model, task="check_data")

    child = subprocess.run(
        [sys.executable, "-m", "worker.train", str(tmp_path / "job")],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )

    events = [parse_event(line) for line in child.stdout.splitlines()]
    assert isinstance(events[-1], Checked)
    assert "model shards" not in child.stderr.decode()
