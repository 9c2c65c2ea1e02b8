import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.workers import Crowd, WorkerRepository
from app.core.db.session import Database
from app.core.errors import BlobNotFoundError, NotFoundError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    MINUTE,
    NOW,
    add_file,
    add_job,
    add_succeeded_job,
    add_tokens,
    claim,
    claim_check,
    get_job,
    list_blobs,
    list_checkpoints,
    list_workers,
)
from tests.exports import add_finished_export, add_task, claim_task, read_task
from tests.fakes import FrozenClock
from worker.janitor import FEW, INTERVAL_S, ORPHANS_INTERVAL_S, Janitor
from worker.launch.locks import JobLock
from worker.presence import Pace, this_worker


@pytest.fixture
def janitor(
    settings: Settings, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> Janitor:
    return Janitor(settings, database=database, store=store, clock=clock)


def test_a_job_without_a_sign_of_life_goes_back_into_the_queue(
    janitor: Janitor, database: Database, clock: FrozenClock, caplog: pytest.LogCaptureFixture
) -> None:
    job = add_job(database)
    claim(database)
    clock.advance(2 * MINUTE)

    janitor.run_if_due()

    assert get_job(database, job.id).status is JobStatus.QUEUED
    (line,) = [one.__dict__ for one in caplog.records if one.getMessage() == "job rescued"]
    assert (line["job_id"], line["attempt"], line["project"]) == (job.id, 1, DEFAULT_PROJECT_ID)


def test_the_job_of_a_worker_that_died_on_this_host_is_not_waited_for(
    janitor: Janitor, database: Database
) -> None:
    """Its successor puts the job back in its first round, and only then forgets the worker."""
    job, waiting = add_job(database), add_job(database)
    living = this_worker("worker-2")
    died = replace(living, worker_id="worker-1", process_started=living.process_started - 1)
    with database.writing() as session:
        for worker in (died, living):
            WorkerRepository(session).beat(worker, now=NOW)
    claim(database, "worker-1")
    claim(database, "worker-2")

    janitor.run_if_due()

    assert get_job(database, job.id).status is JobStatus.QUEUED
    assert get_job(database, waiting.id).status is JobStatus.RUNNING
    assert [one.identity.worker_id for one in list_workers(database)] == ["worker-2"]


def test_the_check_of_a_worker_that_died_on_this_host_is_not_waited_for(
    janitor: Janitor, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store)
    job = add_job(database, training_file_id=file.id, status=JobStatus.VALIDATING_FILES)
    living = this_worker("worker-2")
    died = replace(living, worker_id="worker-1", process_started=living.process_started - 1)
    with database.writing() as session:
        WorkerRepository(session).beat(died, now=NOW)
    claim_check(database, "worker-1")

    janitor.run_if_due()

    lease = claim_check(database, "worker-2")
    assert lease is not None
    assert (lease.job_id, lease.attempt) == (job.id, 2)


def test_tokens_are_kept_until_their_job_ends(
    janitor: Janitor, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    running, ended = add_job(database), add_job(database)
    claim(database)
    for job, name in ((running, "running"), (ended, "ended")):
        add_tokens(database, job, store, f"jobs/{name}")
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(ended.id, now=NOW)

    janitor.run_if_due()

    assert list_blobs(store) == ["jobs/running"]
    with database.reading() as session:
        kept = [session.get_one(DataCheck, job.id).files for job in (running, ended)]
    assert [files is not None for files in kept] == [True, False]


def test_an_expired_export_is_deleted_with_its_bytes(
    janitor: Janitor, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    job = add_succeeded_job(database, store, steps=(1, 2))
    first, second = list_checkpoints(database, job.id)
    kept = add_finished_export(database, store, first, {"a": b"1"})
    expired = add_finished_export(database, store, second, {"a": b"1"}, expires_at=NOW + MINUTE)
    clock.advance(2 * MINUTE)

    janitor.run_if_due()

    assert read_task(database, expired.id) is None
    assert [key for key in list_blobs(store) if "task_" in key] == [
        file["key"] for file in (kept.files or {}).values()
    ]


def test_a_task_of_a_dead_worker_is_given_back_at_once(
    janitor: Janitor, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store)
    add_task(database, list_checkpoints(database, job.id)[0])
    living = this_worker("worker-2")
    died = replace(living, worker_id="worker-1", process_started=living.process_started - 1)
    with database.writing() as session:
        WorkerRepository(session).beat(died, now=NOW)
    claim_task(database, "worker-1")

    janitor.run_if_due()

    assert claim_task(database, "worker-2").lease.attempt == 2


def test_an_expired_file_is_deleted_with_its_bytes(
    janitor: Janitor, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    expired = add_file(database, store, expires_at=NOW + MINUTE)
    kept = add_file(database, store, expires_at=NOW + timedelta(days=1))
    clock.advance(2 * MINUTE)

    janitor.run_if_due()

    with pytest.raises(BlobNotFoundError):
        store.open(expired.blob_key)
    with database.reading() as session:
        files = FileRepository(session, DEFAULT_PROJECT_ID)
        assert files.get_for_job(kept.id).id == kept.id
        with pytest.raises(NotFoundError):
            files.get_for_job(expired.id)


def test_the_data_of_a_waiting_job_outlives_its_time(
    janitor: Janitor, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    expired = add_file(database, store, expires_at=NOW + MINUTE)
    add_job(database, training_file_id=expired.id)
    clock.advance(2 * MINUTE)

    janitor.run_if_due()

    store.open(expired.blob_key).close()


def test_many_expired_files_are_freed_turn_by_turn(
    settings: Settings, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    janitor = Janitor(settings, database=database, store=store, clock=clock, batch=2)
    for _ in range(3):
        add_file(database, store, expires_at=NOW)
    left: list[int] = []

    for _ in range(2):
        janitor.delete_expired_files()
        with database.writing() as session:
            left.append(len(ExpiredFiles(session).list_all(now=NOW, limit=10)))

    assert left == [1, 0]


def test_the_chores_are_done_now_and_then(
    settings: Settings, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    seconds = [1000.0]
    janitor = Janitor(
        settings, database=database, store=store, clock=clock, monotonic_s=lambda: seconds[0]
    )
    janitor.run_if_due()
    file = add_file(database, store, expires_at=NOW)

    seconds[0] += INTERVAL_S - 1
    janitor.run_if_due()
    store.open(file.blob_key).close()
    seconds[0] += 1
    janitor.run_if_due()

    with pytest.raises(BlobNotFoundError):
        store.open(file.blob_key)


@pytest.fixture
def thrifty(
    database: Database, store: LocalBlobStore, clock: FrozenClock, settings: Settings
) -> Janitor:
    """A janitor that looks after the disk, too, with little ballast."""
    settings = settings.model_copy(update={"ballast_bytes": 4096, "min_free_bytes": 0})
    return Janitor(settings, database=database, store=store, clock=clock)


def test_ballast_that_was_dropped_is_made_again(thrifty: Janitor, data_dir: Path) -> None:
    thrifty.run_if_due()
    assert (data_dir / "ballast").stat().st_size == 4096

    (data_dir / "ballast").unlink()
    thrifty.keep_ballast()

    assert (data_dir / "ballast").stat().st_size == 4096


def test_what_was_left_behind_is_freed_at_the_start_and_then_every_hour(
    settings: Settings, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    seconds = [1000.0]
    janitor = Janitor(
        settings, database=database, store=store, clock=clock, monotonic_s=lambda: seconds[0]
    )
    left: list[int] = []

    for passed_s in (0, ORPHANS_INTERVAL_S - 10, 10):
        scratch = store.scratch_file()
        scratch.write_bytes(b"half of an upload")
        os.utime(scratch, (0, 0))
        seconds[0] += passed_s
        janitor.run_if_due()
        left.append(len(list(store.list_scratch())))

    assert left == [0, 1, 0]


def test_locks_that_killed_workers_have_left_behind_are_removed(
    janitor: Janitor, settings: Settings
) -> None:
    left, held = (settings.work_dir / f"ftjob-{number}.lock" for number in (1, 2))
    os.close(JobLock(left).take(within_s=0))
    lock = JobLock(held).take(within_s=0)

    janitor.run_if_due()

    os.close(lock)
    assert (left.exists(), held.exists()) == (False, True)


def test_the_janitors_of_a_crowd_share_the_rounds(
    settings: Settings, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    seconds, pace = [1000.0], Pace()
    pace.crowd = Crowd(living=400, idle=100 * FEW)
    janitor = Janitor(
        settings,
        database=database,
        store=store,
        clock=clock,
        monotonic_s=lambda: seconds[0],
        pace=pace,
    )
    janitor.run_if_due()
    file = add_file(database, store, expires_at=NOW)

    seconds[0] += 10 * INTERVAL_S  # others do the chores meanwhile
    janitor.run_if_due()
    assert list_blobs(store) == [file.blob_key]
    pace.crowd = Crowd(living=400, idle=1)  # the others train now
    janitor.run_if_due()

    assert list_blobs(store) == []
