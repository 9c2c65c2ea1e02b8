"""What becomes of a job whose attempt ended before it did."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import (
    MAX_INTERRUPTIONS,
    Crash,
    Interruption,
    RecoveryRepository,
)
from app.core.db.repositories.saved_states import SavedStateRepository, UnneededStates
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database, Session
from app.core.db.worker_tables import Attempt
from app.core.errors import LeaseLostError
from app.core.job.status import JobStatus
from tests.builders import MINUTE, NOW, add_job, add_worker, claim, get_job, list_messages

CRASH = Crash("The training process died", "Do less.", "Segmentation fault")

Leave = Callable[[Database, Lease], None]


def release(database: Database, lease: Lease) -> None:
    with database.writing() as session:
        RecoveryRepository(session).release(lease, "The worker was stopped", now=NOW)


def crash(database: Database, lease: Lease) -> None:
    with database.writing() as session:
        RecoveryRepository(session).crash(lease, CRASH, now=NOW)


def expire(database: Database, _lease: Lease) -> None:
    rescue(database, after=2 * MINUTE)


LEAVINGS: dict[str, Leave] = {"released": release, "crashed": crash, "lost": expire}


def rescue(database: Database, *, after: timedelta) -> list[str]:
    with database.writing() as session:
        rescued = RecoveryRepository(session).rescue_expired(now=NOW + after)
        return [job.job_id for job in rescued]


def rescue_orphans(database: Database, *, alive: bool, host: str = "host-1") -> list[str]:
    """What a janitor on this host does, for which its workers live or not."""
    with database.writing() as session:
        dead = WorkerRepository(session).find_dead(host, lambda _: alive)
        return [job.job_id for job in RecoveryRepository(session).rescue_orphans(dead, now=NOW)]


def save(database: Database, lease: Lease, step: int) -> list[str]:
    with database.writing() as session:
        files = {"state.json": {"key": f"{lease.attempt}/{step}", "bytes": 1, "sha256": "0"}}
        return SavedStateRepository(session, DEFAULT_PROJECT_ID).add(lease, step, files, now=NOW)


def outcomes(database: Database, job_id: str) -> list[str | None]:
    with database.reading() as session:
        query = select(Attempt.outcome).where(Attempt.job_id == job_id)
        return list(session.scalars(query.order_by(Attempt.attempt)))


@pytest.mark.parametrize("how", LEAVINGS)
def test_the_job_goes_back_to_its_old_place_in_the_queue(database: Database, how: str) -> None:
    job, waiting = add_job(database), add_job(database)

    LEAVINGS[how](database, claim(database))

    found = get_job(database, job.id)
    assert (found.status, found.lease_expires_at, found.attempt) == (JobStatus.QUEUED, None, 1)
    assert outcomes(database, job.id) == [how]
    assert [claim(database).job_id, claim(database).job_id] == [job.id, waiting.id]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("released", "The worker was stopped; the job is queued again and will resume"),
        ("crashed", "The training process died; the job is queued again and will resume"),
        ("lost", "Its worker worker-1 stopped responding; the job is queued again and will"),
    ],
)
def test_its_user_is_told_why_and_from_where_it_goes_on(
    database: Database, how: str, told: str
) -> None:
    job = add_job(database)
    lease = claim(database)
    save(database, lease, 7)

    LEAVINGS[how](database, lease)

    assert list_messages(database, job.id)[-1].startswith(told)
    assert " after step 7" in list_messages(database, job.id)[-1]


@pytest.mark.parametrize("how", LEAVINGS)
def test_one_that_was_to_be_cancelled_is(database: Database, how: str) -> None:
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job.id, now=NOW)
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=NOW)

    LEAVINGS[how](database, lease)

    found = get_job(database, job.id)
    assert (found.status, found.finished_at is None) == (JobStatus.CANCELLED, False)
    assert list_messages(database, job.id)[-1] == "Fine-tuning job cancelled"


@pytest.mark.parametrize("how", LEAVINGS)
def test_one_that_was_to_be_paused_is(database: Database, how: str) -> None:
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job.id, now=NOW)

    LEAVINGS[how](database, lease)

    found = get_job(database, job.id)
    assert (found.status, found.pause_requested_at) == (JobStatus.PAUSED, None)
    assert list_messages(database, job.id)[-1] == (
        "Fine-tuning job paused before any step was saved"
    )


def test_a_second_crash_without_progress_ends_the_job(database: Database) -> None:
    job = add_job(database)

    crash(database, claim(database))
    crash(database, claim(database))

    found = get_job(database, job.id)
    assert found.status is JobStatus.FAILED
    assert found.error is not None
    assert found.error["code"] == "training_crashed"
    assert found.error["message"] == (
        "The training process died, 2 times without progress. Do less. The last line of its log: "
        "Segmentation fault"
    )


def test_progress_forgives_crashes_and_interruptions(database: Database) -> None:
    job = add_job(database)
    for step in range(1, 2 * MAX_INTERRUPTIONS + 1):
        lease = claim(database)
        save(database, lease, step)
        LEAVINGS["crashed" if step % 2 else "lost"](database, lease)

    assert get_job(database, job.id).status is JobStatus.QUEUED


def test_a_job_that_loses_one_worker_after_the_other_ends(database: Database) -> None:
    job = add_job(database)

    for _ in range(MAX_INTERRUPTIONS):
        assert get_job(database, job.id).status is JobStatus.QUEUED
        expire(database, claim(database))

    found = get_job(database, job.id)
    assert found.status is JobStatus.FAILED
    assert found.error is not None
    assert found.error["code"] == "interrupted_too_often"


def test_a_worker_that_is_told_to_stop_is_charged_to_nobody(database: Database) -> None:
    job = add_job(database)

    for _ in range(3 * MAX_INTERRUPTIONS):
        release(database, claim(database))

    found = get_job(database, job.id)
    assert (found.status, found.crashes, found.interruptions) == (JobStatus.QUEUED, 0, 0)


@pytest.mark.parametrize("how", ["released", "crashed"])
def test_who_has_lost_the_lease_hands_nothing_back(database: Database, how: str) -> None:
    job = add_job(database)
    old = claim(database)
    expire(database, old)
    claim(database, "worker-2")

    with pytest.raises(LeaseLostError):
        LEAVINGS[how](database, old)

    assert get_job(database, job.id).status is JobStatus.RUNNING


def test_a_lease_that_has_not_run_out_is_left_alone(database: Database) -> None:
    add_job(database)
    claim(database)

    assert rescue(database, after=timedelta(seconds=59)) == []


def test_a_worker_that_is_gone_is_not_waited_for(database: Database) -> None:
    job = add_job(database)
    add_worker(database)
    claim(database)

    assert rescue_orphans(database, alive=True) == []
    assert rescue_orphans(database, alive=False, host="host-2") == []
    assert rescue_orphans(database, alive=False) == [job.id]
    assert list_messages(database, job.id)[-1] == (
        "Its worker worker-1 died; the job is queued again and will start from its first step"
    )


def test_the_newest_two_states_are_kept(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)

    freed = [save(database, lease, step) for step in (1, 2, 3, 4)]

    assert freed == [[], [], ["1/1"], ["1/2"]]
    with database.reading() as session:
        found = SavedStateRepository(session, DEFAULT_PROJECT_ID).list_newest(job.id)
    assert [state.step for state in found] == [4, 3]


def test_a_state_that_was_passed_over_is_replaced(database: Database) -> None:
    """When the newest could not be read, the next attempt began with the one before it."""
    job = add_job(database)
    old = claim(database)
    for step in (3, 6):
        save(database, old, step)
    release(database, old)

    assert save(database, claim(database), 5) == ["1/6"]
    with database.reading() as session:
        found = SavedStateRepository(session, DEFAULT_PROJECT_ID).list_newest(job.id)
    assert [(state.step, state.attempt) for state in found] == [(5, 2), (3, 1)]


def test_the_states_of_a_job_that_has_ended_are_forgotten(database: Database) -> None:
    ended = add_job(database)
    lease = claim(database)
    save(database, lease, 1)
    release(database, lease)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(ended.id, now=NOW)
    add_job(database)
    save(database, claim(database), 1)

    with database.writing() as session:
        states = UnneededStates(session)
        assert states.delete(held_since=NOW, limit=10) == ["1/1"]
        assert states.delete(held_since=NOW, limit=10) == []


def test_a_machine_without_space_is_not_tried_for_ever(database: Database) -> None:
    job = add_job(database)
    full = Interruption("The disk is full", "Make room.")

    for _ in range(MAX_INTERRUPTIONS):
        assert get_job(database, job.id).status is JobStatus.QUEUED
        with database.writing() as session:
            RecoveryRepository(session).interrupt(claim_in(session), full, now=NOW)

    found = get_job(database, job.id)
    assert found.error is not None
    assert found.error["message"] == (
        "The disk is full, for the 10th time in a row without progress. Make room. POST .../rerun "
        "starts it again."
    )
    assert set(outcomes(database, job.id)) == {"released"}


def claim_in(session: Session) -> Lease:
    lease = LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE)
    assert lease is not None
    return lease
