"""The janitor deletes what a project keeps for a limited time, and nothing of other projects."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import AuditLog
from app.core.db.session import Database
from app.core.db.tables import Event, File, Job
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    add_project,
    add_succeeded_job,
    build_job_in,
    list_blobs,
)
from tests.fakes import FrozenClock
from worker.janitor import INTERVAL_S, RETENTION_INTERVAL_S, Janitor

THRIFTY = "proj-thrifty"
DAY = timedelta(days=1)


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def janitor(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    clock: FrozenClock,
    seconds: Seconds,
) -> Janitor:
    """It deletes two things at once."""
    return Janitor(
        settings, database=database, store=store, clock=clock, monotonic_s=seconds, batch=2
    )


def is_there(database: Database, table: type[File | Job | Event], row_id: str) -> bool:
    with database.reading() as session:
        return session.get(table, row_id) is not None


def test_ended_jobs_are_deleted_with_all_they_made(
    janitor: Janitor, database: Database, store: LocalBlobStore, clock: FrozenClock
) -> None:
    add_project(database, THRIFTY, job_retention_days=2)
    old = [add_succeeded_job(database, store, project_id=THRIFTY) for _ in range(3)]
    waiting = add_job(database, project_id=THRIFTY)
    kept = add_job(database, **build_job_in(JobStatus.CANCELLED))
    clock.advance(3 * DAY)
    young = build_job_in(JobStatus.CANCELLED) | {"finished_at": NOW + 2 * DAY}
    recent = add_job(database, project_id=THRIFTY, **young)

    janitor.run_if_due()

    assert [is_there(database, Job, job.id) for job in old] == [False] * 3
    assert [is_there(database, Job, job.id) for job in (waiting, kept, recent)] == [True] * 3
    assert list_blobs(store) == []


def test_a_job_whose_adapter_another_continues_is_deleted_once_that_one_has_ended(
    janitor: Janitor,
    database: Database,
    store: LocalBlobStore,
    *,
    clock: FrozenClock,
    seconds: Seconds,
) -> None:
    add_project(database, THRIFTY, job_retention_days=2)
    parent = add_succeeded_job(database, store, project_id=THRIFTY)
    other = add_succeeded_job(database, store, project_id=THRIFTY)
    job = add_job(database, project_id=THRIFTY, parent_checkpoint_id=parent.result_checkpoint_id)
    clock.advance(3 * DAY)

    janitor.run_if_due()

    assert is_there(database, Job, parent.id)
    assert not is_there(database, Job, other.id)
    with database.writing() as session:
        JobRepository(session, THRIFTY).request_cancel(job.id, now=clock())
    seconds.now += RETENTION_INTERVAL_S
    janitor.run_if_due()
    assert not is_there(database, Job, parent.id)


def test_old_files_are_deleted_unless_a_job_needs_them(
    janitor: Janitor,
    database: Database,
    store: LocalBlobStore,
    *,
    clock: FrozenClock,
    seconds: Seconds,
) -> None:
    add_project(database, THRIFTY, file_retention_days=2)
    old = add_file(database, store, project_id=THRIFTY)
    needed = add_file(database, store, project_id=THRIFTY)
    add_job(database, project_id=THRIFTY, training_file_id=needed.id)
    others = add_file(database, store)
    young = add_file(database, store, project_id=THRIFTY, created_at=NOW + 2 * DAY)
    clock.advance(3 * DAY)

    janitor.run_if_due()
    seconds.now += INTERVAL_S
    janitor.run_if_due()

    assert not is_there(database, File, old.id)
    assert all(is_there(database, File, file.id) for file in (needed, others, young))
    assert old.blob_key not in list_blobs(store)


def test_old_events_are_deleted(janitor: Janitor, database: Database, clock: FrozenClock) -> None:
    add_project(database, THRIFTY, event_retention_days=2)
    job, others = add_job(database, project_id=THRIFTY), add_job(database)
    clock.advance(3 * DAY)
    with database.writing() as session:
        EventRepository(session, THRIFTY).add(job.id, "Hello", now=clock())

    janitor.run_if_due()

    with database.reading() as session:
        own = EventRepository(session, THRIFTY).list_page(job.id, after=None, limit=9).rows
        theirs = EventRepository(session, DEFAULT_PROJECT_ID)
        assert [event.message for event in own] == ["Hello"]
        assert len(theirs.list_page(others.id, after=None, limit=9).rows) == 3


def test_projects_are_looked_at_once_an_hour(
    janitor: Janitor, database: Database, clock: FrozenClock, seconds: Seconds
) -> None:
    janitor.run_if_due()
    add_project(database, THRIFTY, job_retention_days=1)
    job = add_job(database, project_id=THRIFTY, **build_job_in(JobStatus.CANCELLED))
    clock.advance(2 * DAY)

    seconds.now += RETENTION_INTERVAL_S - 1
    janitor.run_if_due()
    before = is_there(database, Job, job.id)
    seconds.now += INTERVAL_S
    janitor.run_if_due()

    assert (before, is_there(database, Job, job.id)) == (True, False)


def test_a_job_that_is_kept_can_still_be_read(
    janitor: Janitor, database: Database, clock: FrozenClock
) -> None:
    add_project(database, THRIFTY, event_retention_days=1, job_retention_days=9)
    job = add_job(database, project_id=THRIFTY, **build_job_in(JobStatus.CANCELLED))
    clock.advance(2 * DAY)

    janitor.run_if_due()

    with database.reading() as session:
        assert JobRepository(session, THRIFTY).get(job.id).status is JobStatus.CANCELLED


def test_the_audit_trail_forgets_what_is_older_than_the_setting_says(
    janitor: Janitor, database: Database, settings: Settings, clock: FrozenClock
) -> None:
    kept_for = timedelta(days=settings.audit_retention_days)
    ages = {"file-1": 3 * DAY, "file-2": 2 * DAY, "file-3": DAY, "file-4": -DAY}
    with database.writing() as session:
        for file_id, age in ages.items():
            then = NOW - kept_for - age
            audit.record(session, None, audit.Action.FILE_UPLOADED, file_id, now=then)

    janitor.run_if_due()

    with database.reading() as session:
        page = AuditLog(session).list_page(project_id=None, after=None, limit=9)
    assert [event.object_id for event in page.rows] == ["file-4"]


@pytest.mark.only_sqlite  # PostgreSQL's writers do not wait for each other
def test_others_write_while_the_janitor_looks_for_what_is_old(
    janitor: Janitor, database: Database, settings: Settings, store: LocalBlobStore
) -> None:
    days = dict.fromkeys(("file_retention_days", "job_retention_days", "event_retention_days"), 9)
    add_project(database, THRIFTY, **days)
    other = Database(settings.resolved_database_url, busy_timeout_s=0.1)
    written: list[File] = []

    def write(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            written.append(add_file(other, store))

    event.listen(database.engine, "before_cursor_execute", write)
    janitor.apply_retention()
    event.remove(database.engine, "before_cursor_execute", write)
    other.dispose()

    assert len(written) == 5  # before projects, their files, jobs and events, and the audit trail
