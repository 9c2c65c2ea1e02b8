"""Every job that waits says why, in a sentence."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import update
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.queue import MAX_POSITION
from app.core.db.repositories.workers import SILENT_AFTER, WorkerRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from app.maintenance.worker_watch import WorkerWatch
from tests.builders import (
    MINUTE,
    NOW,
    add_file,
    add_job,
    add_worker,
    build_identity,
    build_job,
    build_job_in,
    claim,
    claim_check,
)
from tests.fakes import FrozenClock
from tests.waiting import wait_until

JOBS = "/v1/fine_tuning/jobs"
NO_WORKER = "No worker is running. Start one with `tunery worker`, or all with `tunery serve`."
NEXT = "The job is the next of its project. A worker takes it as soon as one is free."


@pytest.fixture
def worker(database: Database) -> None:
    add_worker(database, memory_bytes=8 * 10**9)


def reason_of(client: TestClient, job: Job) -> str | None:
    """The reason, which is the same in the list and for the job alone."""
    alone = client.get(f"{JOBS}/{job.id}").json()["waiting_reason"]
    (listed,) = client.get(JOBS, params={"search": job.id}).json()["data"]
    assert listed["waiting_reason"] == alone
    return alone


def limit(database: Database, **limits: Any) -> None:
    with database.writing() as session:
        session.execute(update(Project).where(Project.id == DEFAULT_PROJECT_ID).values(limits))


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.VALIDATING_FILES])
def test_nothing_happens_without_a_worker(
    client: TestClient, database: Database, status: JobStatus
) -> None:
    job = add_job(database, status=status)

    assert reason_of(client, job) == NO_WORKER
    add_worker(database)
    with database.writing() as session:
        WorkerRepository(session).beat(build_identity(), now=NOW, is_stopping=True)
    assert reason_of(client, job) == "Every worker has been told to stop and takes no more jobs."


def test_a_worker_that_falls_silent_does_not_count_until_it_wakes(
    client: TestClient, database: Database, clock: FrozenClock
) -> None:
    job = add_job(database)
    add_worker(database, now=clock())
    watch = WorkerWatch(database, clock=clock)

    watch.look()
    assert reason_of(client, job) == NEXT
    clock.advance(SILENT_AFTER + timedelta(seconds=1))
    watch.look()
    assert reason_of(client, job) == NO_WORKER
    add_worker(database, now=clock())
    assert reason_of(client, job) == NEXT


def test_the_api_looks_for_silent_workers_when_it_starts(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    add_worker(database, now=utc_now() - MINUTE)

    with TestClient(app, base_url="http://127.0.0.1") as client:
        wait_until(
            lambda: client.get(f"{JOBS}/{job.id}").json()["waiting_reason"] == NO_WORKER,
            within_s=30,
        )


@pytest.mark.usefixtures("worker")
def test_a_job_counts_those_ahead_of_it(client: TestClient, database: Database) -> None:
    first, second, third = (add_job(database) for _ in range(3))

    assert [reason_of(client, job) for job in (first, second, third)] == [
        NEXT,
        "1 job of the project is ahead in the queue.",
        "2 jobs of the project are ahead in the queue.",
    ]


@pytest.mark.usefixtures("worker")
def test_a_job_far_back_says_at_least_how_many_are_ahead(
    client: TestClient, database: Database
) -> None:
    with database.writing() as session:
        session.add_all(build_job() for _ in range(MAX_POSITION))
    job = add_job(database)

    assert reason_of(client, job) == "At least 999 jobs of the project are ahead in the queue."


@pytest.mark.usefixtures("worker")
def test_a_job_waits_for_the_limits_of_its_project(client: TestClient, database: Database) -> None:
    add_job(database)
    claim(database)
    waiting = add_job(database)

    limit(database, max_running_jobs=1)
    assert reason_of(client, waiting) == (
        "The project's limit of running jobs, 1, is reached. Its next job starts when one of them "
        "ends."
    )
    limit(database, max_running_jobs=2, max_processor_hours=0.5)
    assert reason_of(client, waiting) == NEXT
    with database.writing() as session:
        UsageRepository(session, DEFAULT_PROJECT_ID).add(processor_s=1800, now=NOW)
    assert reason_of(client, waiting) == (
        "The project has used its 0.5 processor hours of this month. Its jobs start in the next "
        "month, or when the operator raises the limit."
    )


@pytest.mark.usefixtures("worker")
def test_a_job_waits_for_memory(client: TestClient, database: Database) -> None:
    tried = add_job(database, waiting_reason="The job needs about 6.0 GB of memory.")
    large = add_job(database, needed_memory_bytes=9 * 10**9)
    small = add_job(database, needed_memory_bytes=10**9, priority=9)

    assert reason_of(client, tried) == "The job needs about 6.0 GB of memory."
    assert reason_of(client, large) == (
        "The job needs at least 9.0 GB of memory, and the largest worker has 8.0 GB."
    )
    assert reason_of(client, small) == NEXT


@pytest.mark.usefixtures("worker")
def test_a_new_job_waits_for_the_check_of_its_data(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store)
    job = add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id)

    before = reason_of(client, job)
    claim_check(database)

    assert before == "The job's data is checked as soon as a worker has time for it."
    assert reason_of(client, job) is None


def test_a_paused_job_waits_for_its_user(client: TestClient, database: Database) -> None:
    job = add_job(database, status=JobStatus.PAUSED)

    assert reason_of(client, job) == "The job is paused until it is resumed."


@pytest.mark.parametrize("status", [JobStatus.RUNNING, *filter(lambda s: s.is_terminal, JobStatus)])
def test_a_job_that_runs_or_has_ended_waits_for_nothing(
    client: TestClient, database: Database, status: JobStatus
) -> None:
    job = add_job(database, **build_job_in(status), waiting_reason="The job needs memory.")

    assert reason_of(client, job) is None
