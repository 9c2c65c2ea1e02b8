"""A job changes its status in one place, and only as the table allows."""

import re
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.db import repositories
from app.core.db.repositories.transitions import lock_job, settle
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.child.training_events import JobError
from app.core.job.status import TRANSITIONS, IllegalTransitionError, JobStatus
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    build_job_in,
    claim,
    dump_tables,
    get_job,
    list_messages,
)

ERROR = JobError(code="out_of_memory", message="It is full.")
LATER = NOW + MINUTE


def move(database: Database, job: Job, status: JobStatus) -> None:
    with database.writing() as session:
        locked = lock_job(session, Job.id == job.id)
        assert locked is not None
        error = ERROR if status is JobStatus.FAILED else None
        settle(session, locked, status, now=LATER, error=error)


@pytest.mark.parametrize("before", JobStatus)
def test_a_transition_that_is_not_in_the_table_is_refused(
    database: Database, before: JobStatus
) -> None:
    job = add_job(database, **build_job_in(before))
    left = dump_tables(database)

    for after in set(JobStatus) - TRANSITIONS[before]:
        with pytest.raises(IllegalTransitionError, match=f"{job.id} .* from {before} to {after}"):
            move(database, job, after)

    assert dump_tables(database) == left


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (before, after)
        for before in JobStatus
        for after in sorted(TRANSITIONS[before] - {JobStatus.RUNNING})
    ],
)
def test_a_transition_of_the_table_leaves_a_whole_row_and_tells_the_user(
    database: Database, before: JobStatus, after: JobStatus
) -> None:
    job = add_job(database, **build_job_in(before))
    told = len(list_messages(database, job.id))

    move(database, job, after)

    moved = get_job(database, job.id)
    assert (moved.status, moved.lease_expires_at) == (after, None)
    assert moved.finished_at == (LATER if after.is_terminal else None)
    expected = {"code": "out_of_memory", "message": "It is full.", "param": None, "errors": []}
    assert moved.error == (expected if after is JobStatus.FAILED else None)
    assert len(list_messages(database, job.id)) == told + 1


def test_the_end_of_a_running_job_is_the_end_of_its_attempt(database: Database) -> None:
    job = add_job(database)
    claim(database)

    move(database, job, JobStatus.FAILED)

    with database.reading() as session:
        attempt = session.scalars(select(Attempt)).one()
    assert (attempt.outcome, attempt.ended_at) == ("failed", LATER)
    assert list_messages(database, job.id)[-1] == "The job failed: It is full."


def test_no_other_module_changes_the_status_of_a_job() -> None:
    """The claim is the exception: it is one statement, so that it cannot race."""
    directory = Path(repositories.__path__[0])
    writers = [
        str(path.relative_to(directory))
        for path in sorted(directory.rglob("*.py"))
        if re.search(r"\bjob\.status = |\bstatus=JobStatus\.", path.read_text("utf-8"))
    ]

    assert writers == ["machines/claims.py", "transitions.py"]
