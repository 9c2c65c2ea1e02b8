"""Which task is done next and by whom, how it ends, and what goes with what it was made of."""

from datetime import datetime, timedelta

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import Task
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository, RequestedAction
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import MEMORY_PAUSE, RecoveryRepository
from app.core.db.repositories.tasks.leases import (
    FAILURE_KEPT_FOR,
    KEPT_FOR,
    MAX_CRASHES,
    MAX_TRIES,
    ClaimedTask,
    TaskLeases,
    TaskQueue,
)
from app.core.db.repositories.tasks.requests import ExpiredTasks, TaskRepository
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import JobError, MemoryShort
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    add_project,
    add_succeeded_job,
    add_worker,
    get_job,
    list_checkpoints,
)
from tests.exports import (
    VERIFICATION,
    add_finished_export,
    add_task,
    claim_task,
    read_task,
)

LATER = NOW + 2 * MINUTE
"""The lease of a task that was claimed at `NOW` has expired."""
FILES = {"adapter.gguf": {"key": "a", "bytes": 300, "sha256": "0", "crc32": 0}}
REFUSED = JobError(code="export_not_equal", message="Logits differ.")


@pytest.fixture
def job(database: Database, store: LocalBlobStore) -> Job:
    return add_succeeded_job(database, store, steps=(1, 6))


@pytest.fixture
def checkpoint(database: Database, job: Job) -> Checkpoint:
    return list_checkpoints(database, job.id)[-1]


def finish(database: Database, task: ClaimedTask) -> None:
    with database.writing() as session:
        result = VERIFICATION.model_dump(mode="json")
        leases = TaskLeases(session, task.id, processor_s=12)
        leases.finish(task.lease, result, FILES, now=NOW + MINUTE / 2)


def must_read(database: Database, task_id: str) -> Task:
    task = read_task(database, task_id)
    assert task is not None
    return task


def test_a_task_is_claimed_once_and_again_when_its_lease_has_run_out(
    database: Database, checkpoint: Checkpoint
) -> None:
    added = add_task(database, checkpoint)
    base_model = get_job(database, checkpoint.job_id).base_model

    with database.writing() as session:
        elsewhere = TaskQueue(session, ("other", base_model))
        assert not elsewhere.is_any(now=NOW), "the machine could not fetch the base model"
        assert elsewhere.claim("worker-2", now=NOW, lease_for=MINUTE) is None
    first = claim_task(database)
    with database.writing() as session:
        assert not TaskQueue(session).is_any(now=NOW)
        assert TaskQueue(session).claim("worker-2", now=NOW, lease_for=MINUTE) is None
    second = claim_task(database, "worker-2", now=LATER)

    assert (first.id, first.lease.attempt) == (added.id, 1)
    assert (second.id, second.lease.attempt) == (added.id, 2)
    with pytest.raises(LeaseLostError), database.writing() as session:
        TaskLeases(session, first.id).renew(first.lease, until=LATER)
    with pytest.raises(LeaseLostError):
        finish(database, first)


def test_projects_take_turns_however_many_tasks_one_of_them_has(
    database: Database, store: LocalBlobStore, job: Job
) -> None:
    many = [add_task(database, each) for each in list_checkpoints(database, job.id)]
    add_project(database, "proj-small")
    small = add_succeeded_job(database, store, project_id="proj-small")
    with database.reading() as session:
        page = CheckpointRepository(session, "proj-small").list_page(small.id, after=None, limit=1)
    one = add_task(database, page.rows[0], project_id="proj-small")

    assert [claim_task(database).id for _ in range(3)] == [many[0].id, one.id, many[1].id]


def test_a_finished_task_counts_what_it_stores_and_what_it_took_of_the_processor(
    database: Database, checkpoint: Checkpoint
) -> None:
    with database.reading() as session:
        before = UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=NOW)
    add_task(database, checkpoint, bytes=1000)
    with database.reading() as session:
        usage = UsageRepository(session, DEFAULT_PROJECT_ID)
        assert usage.stored_bytes() == before.stored_bytes + 1000

    task = claim_task(database)
    finish(database, task)

    with database.reading() as session:
        after = UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=NOW)
    assert after.stored_bytes == before.stored_bytes + 300
    assert after.processor_s == before.processor_s + 12
    row = must_read(database, task.id)
    assert (row.status, row.progress, row.files) == ("succeeded", 1.0, FILES)
    assert row.expires_at == NOW + MINUTE / 2 + KEPT_FOR


def test_a_crash_is_tried_again_and_the_third_one_fails_the_task(
    database: Database, checkpoint: Checkpoint
) -> None:
    task = add_task(database, checkpoint)
    for _ in range(MAX_CRASHES):
        claimed = claim_task(database)
        with database.writing() as session:
            what = "The process died of SIGSEGV"
            TaskLeases(session, claimed.id).crash(claimed.lease, what, now=NOW)

    row = must_read(database, task.id)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "export_crashed"
    assert row.error["message"].startswith("The process died of SIGSEGV, 3 times")
    assert (row.bytes, row.expires_at) == (0, NOW + FAILURE_KEPT_FOR)


def test_a_task_that_brings_its_workers_down_fails_in_the_end(
    database: Database, checkpoint: Checkpoint
) -> None:
    task = add_task(database, checkpoint)
    for _ in range(MAX_TRIES):
        claim_task(database)
        with database.writing() as session:
            TaskQueue(session).release_orphans(["worker-1"])

    with database.writing() as session:
        assert TaskQueue(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None

    row = must_read(database, task.id)
    assert row.error is not None
    assert row.error["code"] == "interrupted_too_often"


def test_a_task_that_was_given_back_is_tried_however_often(
    database: Database, checkpoint: Checkpoint
) -> None:
    task = add_task(database, checkpoint)
    for _ in range(MAX_TRIES + 1):
        claimed = claim_task(database)
        with database.writing() as session:
            TaskLeases(session, claimed.id).release(claimed.lease, now=NOW)

    assert claim_task(database).id == task.id


def action_of(database: Database, task: ClaimedTask) -> RequestedAction:
    with database.writing() as session:
        leases = TaskLeases(session, task.id)
        action = leases.read_requested_action(task.lease)
        assert leases.renew(task.lease, until=NOW + MINUTE) is action
        return action


def fall_short(database: Database, *, on: str, now: datetime) -> None:
    """A worker begins the next job, for which too little memory is free."""
    short = MemoryShort(message="Short.", device="cpu", needed_bytes=6, total_bytes=16)
    with database.writing() as session:
        lease = LeaseRepository(session).claim(on, now=now, lease_for=MINUTE)
        assert lease is not None
        RecoveryRepository(session).wait_for_memory(lease, short, now=now)


def test_a_task_makes_room_for_a_job_on_its_host_that_finds_too_little_memory(
    database: Database, checkpoint: Checkpoint
) -> None:
    for worker_id, host in (("worker-1", "near"), ("worker-2", "near"), ("worker-3", "far")):
        add_worker(database, worker_id, host=host)
    add_task(database, checkpoint)
    task = claim_task(database, "worker-1")
    add_job(database)
    assert action_of(database, task) is RequestedAction.CONTINUE

    fall_short(database, on="worker-3", now=NOW + MINUTE)
    assert action_of(database, task) is RequestedAction.CONTINUE

    fall_short(database, on="worker-2", now=NOW + MEMORY_PAUSE + MINUTE)
    assert action_of(database, task) is RequestedAction.PAUSE


def test_a_task_makes_room_once_so_that_it_is_done_in_the_end(
    database: Database, checkpoint: Checkpoint
) -> None:
    add_worker(database)
    add_task(database, checkpoint)
    add_job(database)
    first = claim_task(database)
    fall_short(database, on="worker-1", now=NOW + MINUTE)
    assert action_of(database, first) is RequestedAction.PAUSE

    later = NOW + MEMORY_PAUSE
    with database.writing() as session:
        TaskLeases(session, first.id).release(first.lease, now=NOW, not_before=later)
    second = claim_task(database, now=later)
    fall_short(database, on="worker-1", now=later + MINUTE)

    assert action_of(database, second) is RequestedAction.CONTINUE


def test_a_task_that_waits_for_memory_keeps_no_other_from_being_done(
    database: Database, job: Job
) -> None:
    waiting, other = [add_task(database, each) for each in list_checkpoints(database, job.id)]
    task = claim_task(database)
    with database.writing() as session:
        TaskLeases(session, task.id).release(task.lease, now=NOW, not_before=NOW + MINUTE)

    assert claim_task(database).id == other.id
    with database.writing() as session:
        assert not TaskQueue(session).is_any(now=NOW)
        assert TaskQueue(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None
    assert claim_task(database, now=NOW + MINUTE).id == waiting.id


def test_a_task_that_was_begun_later_does_not_stop_for_it(
    database: Database, checkpoint: Checkpoint
) -> None:
    """Otherwise no task would be done for as long as other programs hold the memory."""
    add_worker(database)
    add_task(database, checkpoint)
    job = add_job(database)
    fall_short(database, on="worker-1", now=NOW)

    task = claim_task(database, now=NOW + MINUTE)

    assert action_of(database, task) is RequestedAction.CONTINUE
    assert get_job(database, job.id).status is JobStatus.QUEUED


def test_progress_is_that_of_the_newest_try(database: Database, checkpoint: Checkpoint) -> None:
    add_task(database, checkpoint)
    task = claim_task(database)
    with database.writing() as session:
        TaskLeases(session, task.id).progress(task.lease, 0.5)
    assert must_read(database, task.id).progress == 0.5

    claim_task(database, now=LATER)

    assert must_read(database, task.id).progress == 0.0


def test_a_failed_task_can_be_asked_for_again_once_it_has_expired(
    database: Database, checkpoint: Checkpoint
) -> None:
    add_task(database, checkpoint)
    task = claim_task(database)
    with database.writing() as session:
        TaskLeases(session, task.id).fail(task.lease, REFUSED, now=NOW)

    with database.writing() as session:
        ExpiredTasks(session).delete(now=NOW + FAILURE_KEPT_FOR - MINUTE, limit=9)
        assert session.get(Task, task.id) is not None
        ExpiredTasks(session).delete(now=NOW + FAILURE_KEPT_FOR, limit=9)

    assert read_task(database, task.id) is None


def test_a_download_keeps_the_files_for_longer(
    database: Database, store: LocalBlobStore, checkpoint: Checkpoint
) -> None:
    task = add_finished_export(database, store, checkpoint, {"a": b"1"}, expires_at=LATER)
    with database.writing() as session:
        tasks = TaskRepository(session, DEFAULT_PROJECT_ID)
        tasks.keep_until(task.id, LATER + timedelta(hours=1))
        tasks.keep_until(task.id, LATER)  # never shorter

    with database.writing() as session:
        assert ExpiredTasks(session).delete(now=LATER, limit=9) == []
        keys = ExpiredTasks(session).delete(now=LATER + timedelta(hours=1), limit=9)

    assert keys == [file["key"] for file in (task.files or {}).values()]


def test_what_is_deleted_takes_its_tasks_with_it(
    database: Database, store: LocalBlobStore, job: Job, checkpoint: Checkpoint
) -> None:
    first = list_checkpoints(database, job.id)[0]
    of_first = add_finished_export(database, store, first, {"a": b"1"})
    of_result = add_finished_export(database, store, checkpoint, {"a": b"1"})
    running = claim_task(database) if add_task(database, checkpoint, variant="gguf") else None
    assert running is not None

    with database.writing() as session:
        keys = CheckpointRepository(session, DEFAULT_PROJECT_ID).delete(
            session.get_one(Checkpoint, first.id)
        )
    assert (of_first.files or {})["a"]["key"] in keys
    assert read_task(database, of_first.id) is None

    with database.writing() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        keys = jobs.delete(jobs.get(job.id))
    assert (of_result.files or {})["a"]["key"] in keys
    with pytest.raises(LeaseLostError):
        finish(database, running)
