"""Whose data is checked next, by whom, and what becomes of a job whose data is being checked."""

from datetime import timedelta
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.data_checks import (
    MAX_CRASHES,
    CheckLimits,
    DataCheckRepository,
)
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import may_be_continued
from app.core.db.repositories.sweeps.shared_checks import EndedChecks
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from tests.builders import (
    EVERY_CHECK,
    MINUTE,
    NOW,
    add_job,
    add_project,
    add_tokens,
    build_data_report,
    build_file,
    claim_check,
    get_job,
    list_messages,
)

LATER = NOW + 2 * MINUTE
"""The lease of a check that was claimed at `NOW` has expired."""
REPORT = build_data_report().model_dump(mode="json")
REFUSED = JobError(code="row_too_long", message="Line 3 is too long.", param="training_file")


def add(database: Database, *, size: int = 10, **changes: Any) -> Job:
    """A job whose data nobody has checked."""
    file = build_file(bytes=size, project_id=changes.get("project_id", DEFAULT_PROJECT_ID))
    with database.writing() as session:
        session.add(file)
    return add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id, **changes)


def claim(database: Database, **options: Any) -> Lease:
    lease = claim_check(database, **options)
    assert lease is not None
    return lease


def claim_all(database: Database) -> list[str]:
    """The jobs in the order in which their data is checked."""
    found: list[str] = []
    while (lease := claim_check(database)) is not None:
        found.append(lease.job_id)
    return found


def finish(database: Database, lease: Lease, error: JobError | None = None) -> None:
    with database.writing() as session:
        checks = DataCheckRepository(session)
        checks.finish(lease, REPORT, None, error=error, now=NOW + MINUTE / 2)


def read(database: Database, job: Job) -> DataCheck:
    with database.reading() as session:
        return session.get_one(DataCheck, job.id)


def test_the_highest_priority_is_first_and_then_the_oldest_job(database: Database) -> None:
    low, first, urgent, last = (add(database, priority=one) for one in (-1, 0, 5, 0))

    assert claim_all(database) == [urgent.id, first.id, last.id, low.id]


def test_projects_take_turns_however_many_jobs_one_of_them_has(database: Database) -> None:
    add_project(database, "proj-small")
    many = [add(database) for _ in range(3)]
    one = add(database, project_id="proj-small")

    first = claim(database)
    finish(database, first)
    second = claim(database, now=NOW + timedelta(seconds=1))

    assert {first.job_id, second.job_id} == {many[0].id, one.id}


def test_a_worker_says_which_checks_it_takes(database: Database) -> None:
    large = add(database, size=100)
    new = add(database, created_at=NOW + MINUTE)
    small = CheckLimits(created_before=NOW, max_bytes=99)

    assert claim_check(database, limits=small) is None
    with database.reading() as session:
        checks = DataCheckRepository(session)
        assert not checks.is_any(small, now=NOW)
        assert checks.is_any(EVERY_CHECK, now=NOW)
    away = CheckLimits(created_before=NOW, failed_models=("other", large.base_model))
    assert claim_check(database, limits=away) is None, "its machine could not fetch the model"
    assert claim(database, limits=CheckLimits(created_before=NOW)).job_id == large.id
    assert claim(database).job_id == new.id


@pytest.mark.parametrize("status", [one for one in JobStatus if one.name != "VALIDATING_FILES"])
def test_only_what_is_validating_is_checked(database: Database, status: JobStatus) -> None:
    job = add(database)
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        row.status = status
        row.finished_at = NOW if status.is_terminal else None
        row.lease_expires_at = NOW if status is JobStatus.RUNNING else None
        row.error = {"code": "a"} if status is JobStatus.FAILED else None

    assert claim_check(database) is None


def test_an_expired_check_is_claimed_again_and_its_first_worker_is_refused(
    database: Database,
) -> None:
    add(database)
    old = claim(database)
    assert claim_check(database, worker_id="worker-2") is None

    new = claim(database, worker_id="worker-2", now=LATER)

    assert (old.attempt, new.attempt) == (1, 2)
    with database.writing() as session:
        checks = DataCheckRepository(session)
        with pytest.raises(LeaseLostError):
            checks.renew(old, until=LATER)
        with pytest.raises(LeaseLostError):
            checks.read_requested_action(old)
        with pytest.raises(LeaseLostError):
            checks.release(old, now=LATER)
        with pytest.raises(LeaseLostError):
            checks.crash(old, "It died", now=LATER)
    with pytest.raises(LeaseLostError):
        finish(database, old)
    finish(database, new)
    assert get_job(database, new.job_id).status is JobStatus.QUEUED


def test_a_renewed_check_is_not_claimed_by_another(database: Database) -> None:
    add(database)
    lease = claim(database)

    with database.writing() as session:
        DataCheckRepository(session).renew(lease, until=LATER + MINUTE)

    assert claim_check(database, worker_id="worker-2", now=LATER) is None


def test_the_check_of_a_dead_worker_is_free_at_once(database: Database) -> None:
    job, other = add(database), add(database)
    claim(database)
    claim(database, worker_id="worker-2")

    with database.writing() as session:
        DataCheckRepository(session).release_orphans(["worker-1"])

    assert claim_all(database) == [job.id]
    assert read(database, other).worker_id == "worker-2"


def test_data_without_a_fault_moves_the_job_into_the_queue(database: Database) -> None:
    job = add(database)

    finish(database, claim(database))

    check = read(database, job)
    assert (check.report, check.worker_id, check.lease_expires_at) == (REPORT, None, None)
    assert list_messages(database, job.id)[1:] == [
        f"Validating training file: {job.training_file_id}",
        "Files validated, moving job to queued state",
    ]
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE)
    assert lease is not None
    assert lease.job_id == job.id


def test_bad_data_fails_the_job_even_if_it_was_to_pause(database: Database) -> None:
    job = add(database, pause_requested_at=NOW)

    finish(database, claim(database), REFUSED)

    failed = get_job(database, job.id)
    assert (failed.status, failed.pause_requested_at) == (JobStatus.FAILED, None)
    assert (failed.error or {})["code"] == "row_too_long"
    assert read(database, job).report == REPORT


def test_a_process_that_keeps_dying_fails_the_job_which_can_be_continued(
    database: Database,
) -> None:
    job = add(database)

    for _ in range(MAX_CRASHES):
        assert get_job(database, job.id).status is JobStatus.VALIDATING_FILES
        lease = claim(database)
        with database.writing() as session:
            DataCheckRepository(session).crash(lease, "It died of SIGSEGV", now=NOW)

    failed = get_job(database, job.id)
    assert (failed.error or {})["code"] == "data_check_crashed"
    assert may_be_continued(failed)
    assert claim_check(database) is None


def test_a_cancelled_job_ends_at_once_and_its_check_is_refused(database: Database) -> None:
    job = add(database)
    lease = claim(database)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=NOW)

    with pytest.raises(LeaseLostError):
        finish(database, lease)
    assert get_job(database, job.id).status is JobStatus.CANCELLED
    assert claim_check(database, now=LATER) is None


def test_a_project_that_is_being_erased_has_its_checks_ended(database: Database) -> None:
    running, waiting = add(database), add(database)
    lease = claim(database)

    with database.writing() as session:
        RecoveryRepository(session).cancel_running(DEFAULT_PROJECT_ID, now=NOW)

    with pytest.raises(LeaseLostError):
        finish(database, lease)
    statuses = {get_job(database, job.id).status for job in (running, waiting)}
    assert statuses == {JobStatus.CANCELLED}


def test_no_check_begins_for_a_project_that_is_being_erased(database: Database) -> None:
    add_project(database, "proj-a", erasing_since=NOW)
    add(database, project_id="proj-a")

    assert claim_check(database) is None


def test_the_time_of_a_check_counts_as_the_projects(database: Database) -> None:
    add(database)

    finish(database, claim(database))

    with database.reading() as session:
        usage = UsageRepository(session, DEFAULT_PROJECT_ID)
        assert usage.processor_s(now=NOW + MINUTE) == 30.0


def test_settings_that_this_version_cannot_read_fail_the_job(database: Database) -> None:
    unreadable, job = add(database, config={"colour": "red"}), add(database)

    assert claim_check(database) is None

    assert (get_job(database, unreadable.id).error or {})["code"] == "settings_unreadable"
    assert claim(database).job_id == job.id


def test_tokens_are_forgotten_once_the_job_has_ended(database: Database) -> None:
    running, ended = (
        add_job(database),
        add_job(database, status=JobStatus.CANCELLED, finished_at=NOW),
    )
    for job in (running, ended):
        add_tokens(database, job, None, f"{job.id}/a", f"{job.id}/b")

    with database.writing() as session:
        keys = EndedChecks(session).forget_tokens(limit=9)

    assert keys == [f"{ended.id}/a", f"{ended.id}/b"]
    assert read(database, ended).files is None
    assert read(database, running).files is not None
