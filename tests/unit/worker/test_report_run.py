"""A report by a worker: what its child is given, and what becomes of the task."""

from pathlib import Path
from typing import Any

import pytest

from app.core.base_models import Catalogue
from app.core.db.check_tables import Task
from app.core.db.repositories.recovery import MEMORY_PAUSE
from app.core.db.repositories.tasks.leases import MAX_CRASHES
from app.core.db.repositories.tasks.reports import begin_report
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.child.job_spec import (
    JOB_SPEC_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    JobSpec,
)
from app.core.job.child.training_events import Exported, Failed, MemoryShort, Progressed, Reported
from app.core.job.scores.report import REQUEST_NAME, ReportRequest
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import CHAT_LINE, NOW, add_file, build_config
from tests.exports import VERIFICATION
from tests.fakes import FrozenClock
from tests.reports import REPORT_MADE
from tests.task_bench import Bench, doing

MADE = Reported(report=REPORT_MADE)


@pytest.fixture
def bench(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Bench:
    """A worker with one task: the report of a job, with a prompt of the request."""
    bench = Bench(settings, database, store, catalogue, clock)
    with database.writing() as session:
        session.delete(session.get_one(Task, bench.task_id))
        job = session.get_one(Job, bench.job.id)
        bench.task_id = begin_report(session, job, bench.checkpoint.id, ["Hi"], now=NOW).id
    return bench


def set_data(bench: Bench, **changes: Any) -> None:
    with bench.database.writing() as session:
        job = session.get_one(Job, bench.job.id)
        for name, value in changes.items():
            setattr(job, name, value)


def see_directory(bench: Bench) -> set[str]:
    """Names of what the child finds, without what all children find."""
    seen: list[set[str]] = []
    bench.do(lambda directory: seen.append({path.name for path in directory.iterdir()}), MADE)
    return seen[0] - {"out", "base-model", "machine-cache", "project-cache", JOB_SPEC_NAME}


def test_a_report_is_kept_with_its_job(bench: Bench) -> None:
    assert bench.do(Progressed(fraction=0.5), MADE) == 0.0

    task = bench.task()
    assert (task.status, task.result) == ("succeeded", REPORT_MADE.model_dump(mode="json"))
    assert (task.files, task.bytes, task.expires_at) == (None, 0, None)
    bench.delete_job()
    with bench.database.reading() as session:
        assert session.get(Task, bench.task_id) is None


def test_the_child_is_given_the_adapter_and_the_prompts(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    def look(directory: Path) -> None:
        seen["spec"] = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
        seen["request"] = ReportRequest.model_validate_json((directory / REQUEST_NAME).read_bytes())

    bench.do(look, MADE)

    assert (seen["spec"].task, seen["spec"].threads) == ("report", 1)
    assert seen["request"] == ReportRequest(prompts=("Hi",), are_chats=True)


def test_the_child_is_given_the_validation_file(bench: Bench, store: LocalBlobStore) -> None:
    file = add_file(bench.database, store, CHAT_LINE, format="messages")
    set_data(bench, validation_file_id=file.id)

    assert see_directory(bench) == {ADAPTER_DIRECTORY_NAME, REQUEST_NAME, VALIDATION_DATA_NAME}


def test_the_child_is_given_the_training_file_if_a_part_was_held_out(
    bench: Bench, store: LocalBlobStore
) -> None:
    file = add_file(bench.database, store, CHAT_LINE, format="messages")
    config = build_config(validation_split=0.5).model_dump(mode="json")
    set_data(bench, training_file_id=file.id, config=config)

    assert see_directory(bench) == {ADAPTER_DIRECTORY_NAME, REQUEST_NAME, TRAINING_DATA_NAME}


def test_a_report_on_a_checkpoint_that_is_not_the_result_scores_nothing(
    bench: Bench, store: LocalBlobStore
) -> None:
    file = add_file(bench.database, store, CHAT_LINE, format="messages")
    set_data(bench, validation_file_id=file.id, result_checkpoint_id=None)

    assert see_directory(bench) == {ADAPTER_DIRECTORY_NAME, REQUEST_NAME}


@pytest.mark.parametrize("kept", ["text", "deleted"])
def test_the_child_is_given_no_data_that_cannot_be_scored(
    bench: Bench, store: LocalBlobStore, kept: str
) -> None:
    file_id = add_file(bench.database, store).id if kept == "text" else "file-deleted"
    set_data(bench, validation_file_id=file_id)

    assert see_directory(bench) == {ADAPTER_DIRECTORY_NAME, REQUEST_NAME}


def test_a_report_that_fails_says_why_until_it_is_asked_for_again(bench: Bench) -> None:
    bench.do(Failed(code="not_enough_memory", message="It needs 14 GB."))

    task = bench.task()
    assert (task.status, task.expires_at) == ("failed", None)
    assert task.error is not None
    assert task.error["code"] == "not_enough_memory"


def test_a_report_waits_for_memory(bench: Bench) -> None:
    bench.do(MemoryShort(message="Short.", device="cpu", needed_bytes=6, total_bytes=16))
    assert bench.task().status == "queued"

    bench.clock.advance(MEMORY_PAUSE)
    bench.do(MADE)
    assert bench.task().status == "succeeded"


def test_a_report_whose_process_dies_again_and_again_fails(bench: Bench) -> None:
    for _ in range(MAX_CRASHES):
        bench.do(exit_code=-11)

    error = bench.task().error
    assert error is not None
    assert error["code"] == "report_crashed"


def test_a_child_that_reports_an_export_fails_the_task(bench: Bench) -> None:
    bench.do(Exported(verification=VERIFICATION))

    error = bench.task().error
    assert error is not None
    assert error["code"] == "training_protocol_violated"


def test_a_report_that_was_replaced_meanwhile_is_thrown_away(bench: Bench) -> None:
    def replace() -> None:
        with bench.database.writing() as session:
            job = session.get_one(Job, bench.job.id)
            bench.task_id = begin_report(session, job, bench.checkpoint.id, ["Ho"], now=NOW).id

    bench.do(doing(replace), MADE)

    assert (bench.task().status, bench.task().result) == ("queued", None)
