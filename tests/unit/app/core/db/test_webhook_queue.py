"""An event is queued with the change that it reports, and claimed by one sender at a time."""

import contextlib
from datetime import timedelta

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Project
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.transitions import lock_job, settle
from app.core.db.repositories.webhooks import WebhookQueue, WebhookRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from app.core.webhooks.events import EVENT_OF_STATUS, WebhookEventType
from app.webhooks.messages import new_secret
from tests.builders import MINUTE, NOW, add_job, build_job_in, claim
from tests.webhooks import add_endpoint, end_job, list_deliveries, queue_event

URL = "https://hooks.example.com/"
ENDED_BY_A_WORKER = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED)


def change_status(session: Session, job: Job, status: JobStatus) -> None:
    locked = lock_job(session, Job.id == job.id)
    assert locked is not None
    error = JobError(code="out_of_memory", message="It is full.")
    is_failed = status is JobStatus.FAILED
    settle(session, locked, status, now=NOW, error=error if is_failed else None)


@pytest.mark.parametrize("status", ENDED_BY_A_WORKER)
def test_a_change_of_status_queues_its_event_in_the_same_transaction(
    database: Database, status: JobStatus
) -> None:
    add_endpoint(database, URL, event_types=[*WebhookEventType])
    job = add_job(database, **build_job_in(JobStatus.RUNNING))
    with contextlib.suppress(InterruptedError), database.writing() as session:
        change_status(session, job, status)
        raise InterruptedError
    assert list_deliveries(database) == []

    with database.writing() as session:
        change_status(session, job, status)

    queued = list_deliveries(database)
    assert [(one.job_id, one.event_type) for one in queued] == [(job.id, EVENT_OF_STATUS[status])]


def test_a_claimed_job_is_told_as_running_and_a_queued_one_not_at_all(database: Database) -> None:
    add_endpoint(database, URL, event_types=[*WebhookEventType])
    add_job(database)
    assert list_deliveries(database) == []

    lease = claim(database)
    with database.writing() as session:
        held = LeaseRepository(session).hold(lease)
        settle(session, held, JobStatus.QUEUED, now=NOW, outcome="released")

    assert [one.event_type for one in list_deliveries(database)] == [WebhookEventType.RUNNING]


def test_an_endpoint_hears_only_of_its_own_project(database: Database) -> None:
    with database.writing() as session:
        session.add(Project(id="proj-other", name="other", created_at=NOW))
    add_endpoint(database, URL, project_id="proj-other")

    end_job(database)

    assert list_deliveries(database) == []


def test_only_one_sender_gets_an_endpoint(database: Database) -> None:
    """Although two events wait: it has one sender at a time."""
    endpoints = [add_endpoint(database, f"{URL}{n}") for n in range(2)]
    for _ in range(2):
        queue_event(database)

    claimed: list[str] = []
    for _ in range(3):
        with database.writing() as session:
            dispatch = WebhookQueue(session).claim(now=NOW, lease_for=MINUTE)
            claimed += [dispatch.endpoint_id] if dispatch else []

    assert claimed == [endpoint.id for endpoint in endpoints]


@pytest.mark.parametrize(("after", "count"), [(timedelta(), 2), (timedelta(hours=24), 1)])
def test_an_old_secret_signs_until_its_time_is_over(
    database: Database, after: timedelta, count: int
) -> None:
    until = NOW + timedelta(hours=24)
    add_endpoint(database, URL, old_secret=new_secret(), old_secret_until=until)
    queue_event(database)

    with database.writing() as session:
        dispatch = WebhookQueue(session).claim(now=NOW + after, lease_for=MINUTE)

    assert dispatch is not None
    assert len(dispatch.secrets) == count


def test_deleting_an_endpoint_forgets_what_it_was_not_sent(database: Database) -> None:
    endpoint = add_endpoint(database, URL)
    queue_event(database)

    with database.writing() as session:
        WebhookRepository(session, DEFAULT_PROJECT_ID).delete(endpoint)

    assert list_deliveries(database) == []
