"""The attempts at a job over HTTP: what each did, why it ended, and how the job went on."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import Crash, Interruption, RecoveryRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    MINUTE,
    NOW,
    add_file,
    add_job,
    add_project,
    build_metrics,
    claim,
    pass_checks,
)

SECOND = timedelta(seconds=1)


@pytest.fixture
def job(database: Database) -> Job:
    return add_job(database)


def get(client: TestClient, job: Job) -> dict[str, Any]:
    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/attempts")
    assert answer.status_code == 200, answer.text
    return answer.json()


def causes(client: TestClient, job: Job) -> list[str | None]:
    return [attempt["cause"] for attempt in get(client, job)["data"]]


def train(database: Database, *, first: int = 0, last: int = 0, now: datetime = NOW) -> Lease:
    """An attempt that has resumed after the step `first`, and has taken the steps up to `last`."""
    lease = claim(database, now=now)
    with database.writing() as session:
        leases = LeaseRepository(session)
        leases.begin(lease, after_step=first, now=now)
        rows = [build_metrics(step) for step in range(first + 1, last + 1)]
        if rows:
            leases.record_steps(lease, rows, tokens_per_second=None, estimated_finish_at=None)
    return lease


def release(database: Database, lease: Lease, why: str = "The worker was stopped") -> None:
    with database.writing() as session:
        RecoveryRepository(session).release(lease, why, now=NOW)


def test_a_dead_worker_and_the_attempt_after_it_are_told_in_a_sentence(
    client: TestClient, database: Database, job: Job
) -> None:
    first = train(database, last=120)
    with database.writing() as session:
        RecoveryRepository(session).rescue_orphans([first.worker_id], now=NOW + MINUTE)
    second = NOW + MINUTE + 61 * SECOND
    train(database, first=118, last=119, now=second)

    assert get(client, job)["data"] == [
        {
            "attempt": 1,
            "worker_id": "worker-1",
            "started_at": int(NOW.timestamp()),
            "ended_at": int((NOW + MINUTE).timestamp()),
            "outcome": "lost",
            "from_step": 0,
            "to_step": 120,
            "cause": "The worker died at step 120; the next attempt resumed from step 118 after "
            "61 s.",
        },
        {
            "attempt": 2,
            "worker_id": "worker-1",
            "started_at": int(second.timestamp()),
            "ended_at": None,
            "outcome": None,
            "from_step": 118,
            "to_step": 119,
            "cause": None,
        },
    ]


def test_each_way_to_end_early_has_its_cause(
    client: TestClient, database: Database, job: Job
) -> None:
    release(database, train(database, last=3))
    lease = claim(database)
    with database.writing() as session:
        crash = Crash("The training process died of SIGSEGV", "Do less.", "")
        RecoveryRepository(session).crash(lease, crash, now=NOW)
    lease = train(database, last=1200)
    with database.writing() as session:
        full = Interruption("The disk is full")
        RecoveryRepository(session).interrupt(lease, full, now=NOW)
    train(database, last=2)
    with database.writing() as session:
        RecoveryRepository(session).rescue_expired(now=NOW + 2 * MINUTE)

    assert causes(client, job) == [
        "The worker was stopped at step 3; the next attempt began after 0 s.",
        (
            "The training process died of SIGSEGV; the next attempt started from the first step "
            "after 0 s."
        ),
        "The disk is full at step 1,200; the next attempt started from the first step after 0 s.",
        "The worker stopped responding at step 2; the job waits for its next attempt.",
    ]


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (JobStatus.SUCCEEDED, "The job succeeded at step 5."),
        (JobStatus.CANCELLED, "The job was cancelled at step 5."),
        (JobStatus.FAILED, "The job failed at step 5: The loss is not a number. Train slower."),
    ],
)
def test_the_last_attempt_says_how_the_job_ended(
    client: TestClient, database: Database, job: Job, status: JobStatus, cause: str
) -> None:
    lease = train(database, last=5)
    error = JobError(code="loss_not_finite", message="The loss is not a number. Train slower.")
    with database.writing() as session:
        is_failed = status is JobStatus.FAILED
        LeaseRepository(session).finish(lease, status, now=NOW, error=error if is_failed else None)

    (attempt,) = get(client, job)["data"]

    assert (attempt["outcome"], attempt["to_step"], attempt["cause"]) == (status, 5, cause)


@pytest.mark.parametrize(
    ("request_name", "outcome"), [("request_pause", "paused"), ("request_cancel", "cancelled")]
)
def test_a_worker_that_does_as_it_was_asked_is_not_the_cause(
    client: TestClient, database: Database, job: Job, request_name: str, outcome: str
) -> None:
    lease = train(database, last=4)
    with database.writing() as session:
        getattr(JobRepository(session, DEFAULT_PROJECT_ID), request_name)(job.id, now=NOW)
    release(database, lease, "The job was interrupted")

    (attempt,) = get(client, job)["data"]

    assert attempt["outcome"] == outcome
    assert attempt["cause"] == f"The job was {outcome} at step 4."


def test_a_paused_job_says_for_how_long(client: TestClient, database: Database, job: Job) -> None:
    lease = train(database, last=4)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job.id, now=NOW)
    release(database, lease)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).resume(job.id, now=NOW)
    train(database, first=4, now=NOW + 150 * MINUTE)

    assert causes(client, job)[0] == (
        "The job was paused at step 4; the next attempt resumed from step 4 after 2 h."
    )


def test_an_attempt_of_an_earlier_release_has_what_is_known(
    client: TestClient, database: Database, job: Job
) -> None:
    release(database, train(database, last=4))
    train(database, first=2)
    with database.writing() as session:
        session.execute(update(Attempt).values(from_step=None, to_step=None, cause=None))

    first, second = get(client, job)["data"]

    assert first["cause"] == (
        "The worker put the job back into the queue; the next attempt began after 0 s."
    )
    assert (first["from_step"], first["to_step"]) == (second["from_step"], second["to_step"])
    assert (second["from_step"], second["to_step"], second["cause"]) == (None, None, None)


def test_the_check_of_the_data_comes_with_the_attempts(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store)
    job = add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id)
    before = get(client, job)
    pass_checks(database, NOW + MINUTE)
    after = get(client, job)

    assert (before["data"], after["data"]) == ([], [])
    never = {"tries": 0, "crashes": 0, "started_at": None, "ended_at": None}
    at = int((NOW + MINUTE).timestamp())
    assert before["data_check"] == never
    assert after["data_check"] == never | {"tries": 1, "started_at": at, "ended_at": at}


def test_the_attempts_of_another_project_are_not_found(
    client: TestClient, database: Database
) -> None:
    add_project(database, "proj-other")
    other = add_job(database, project_id="proj-other")

    answer = client.get(f"/v1/fine_tuning/jobs/{other.id}/attempts")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
