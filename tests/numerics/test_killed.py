"""Killed at any moment of a save, a child leaves something whole, or nothing of that name."""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from app.core.job.child.training_events import TrainingEvent, parse_event
from app.core.manifest import atomic_directory, verify
from tests.killing import is_killed_before, is_killed_in_write_beyond
from tests.numerics.test_resume import (
    Run,
    assert_ends_like,
    begin_again,
    hand_over,
    reported_state,
    run,
    write,
)
from tests.tiny import (
    build_peft_model,
    build_tokenizer,
    build_trainer,
    chat_row,
    write_job,
)
from worker.training.artifacts.checkpoint import write_checkpoint
from worker.training.artifacts.loss_log import LossLog
from worker.training.artifacts.saved_state import write_state
from worker.training.data.stop_tokens import StopTokens
from worker.training.recipe import run_job
from worker.training.step.step import BestAdapter

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""Python 3.12 warns of other threads, which may hold a lock; there is none of ours here."""

Save = Callable[[Path], None]


@pytest.fixture
def saves(base_model: Path, tmp_path: Path) -> dict[str, Save]:
    """How the state and the checkpoint of step 2 of a job are saved."""
    spec = write_job(tmp_path / "job", [chat_row("a", "b")], base_model=base_model)
    model = build_peft_model()
    trainer = build_trainer(model)
    best = BestAdapter(patience=2)
    log = LossLog(tmp_path / "log.jsonl")
    for step in (1, 2):
        log.append(trainer.take_step())
        best.observe(step, 1 / step, model)

    def save(target: Path, write_files: Save) -> None:
        with atomic_directory(target, 2, spec) as staging:
            write_files(staging)

    state = partial(write_state, spec=spec, trainer=trainer, best=best, data_sha256="d")
    checkpoint = partial(
        write_checkpoint,
        spec=spec,
        step=2,
        model=model,
        base_model=base_model,
        log=log,
        stop_tokens=StopTokens.read(base_model, build_tokenizer()),
    )
    return {
        "state": partial(save, write_files=state),
        "checkpoint": partial(save, write_files=checkpoint),
    }


def is_there(target: Path) -> bool:
    """Whether `target` is whole; otherwise nothing is there, not even a link or a file."""
    return (target.exists() or target.is_symlink()) and verify(target).step == 2


@pytest.mark.parametrize("what", ["state", "checkpoint"])
def test_a_save_that_is_killed_at_any_file_operation_is_whole_or_not_there(
    saves: dict[str, Save], tmp_path: Path, what: str
) -> None:
    output, is_whole = tmp_path / "out", []
    target = output / "target"
    for operation in count(1):
        shutil.rmtree(output, ignore_errors=True)  # as the next attempt begins
        was_killed = is_killed_before(operation, partial(saves[what], target))
        is_whole.append(is_there(target))
        if not was_killed:
            break

    # It gets its name once, late, and after that only waits for the disk.
    assert is_whole == sorted(is_whole)
    assert 6 < is_whole.index(True) < len(is_whole) - 1


@pytest.mark.parametrize("what", ["state", "checkpoint"])
def test_a_save_that_is_killed_in_the_middle_of_a_file_is_not_there(
    saves: dict[str, Save], tmp_path: Path, what: str
) -> None:
    saves[what](tmp_path / "whole")
    sizes = {path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    output = tmp_path / "out"
    for size in sorted({size - 1 for size in sizes} | {size // 2 for size in sizes} | {0}):
        shutil.rmtree(output, ignore_errors=True)

        assert is_killed_in_write_beyond(size, partial(saves[what], output / "target"))

        assert not (output / "target").exists()


def test_a_job_that_is_killed_again_and_again_ends_like_one_that_was_not(
    base_model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "whole", base_model, epochs=2)
    whole = run(tmp_path / "whole")
    attempts: list[Run] = []

    for number in count(1):
        directory = tmp_path / f"attempt-{number}"
        if attempts:
            hand_over(attempts, max(attempts[-1].states), directory)
        else:
            begin_again(whole, directory, save_interval_s=1e-9)
        was_killed = is_killed_before(13 * number, partial(run_and_log, directory))
        attempt = read_log(directory)
        for _, state in filter(None, map(reported_state, attempt.events)):
            verify(directory / state)
        if not was_killed:
            attempts.append(attempt)
            break
        if attempt.states:  # what came after the last one is lost
            attempts.append(attempt.until(max(attempt.states)))

    assert number > len(attempts) > 2
    assert_ends_like(whole, attempts)


def run_and_log(directory: Path) -> None:
    def report(event: TrainingEvent) -> None:
        with (directory / "events").open("a") as events:
            events.write(event.model_dump_json() + "\n")

    run_job(directory, report)


def read_log(directory: Path) -> Run:
    path = directory / "events"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return Run(directory, [parse_event(line) for line in lines])
