"""Who may write what about a job, and when: the fence, the rescue, the races with a cancel."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.event import listen

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import steady_s
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository, RequestedAction
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.session import Database
from app.core.db.worker_tables import Attempt
from app.core.errors import LeaseLostError
from app.core.job.status import JobStatus
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    build_checkpoint,
    build_file,
    build_metrics,
    claim,
    claim_check,
    get_job,
)

Write = Callable[[LeaseRepository, Lease], Any]

WRITES: dict[str, Write] = {
    "begin": lambda leases, lease: leases.begin(lease, after_step=0, now=NOW),
    "renew": lambda leases, lease: leases.renew(lease, until=NOW + 2 * MINUTE),
    "read_requested_action": lambda leases, lease: leases.read_requested_action(lease),
    "start": lambda leases, lease: leases.start(lease, total_steps=10),
    "record_steps": lambda leases, lease: leases.record_steps(
        lease, [build_metrics()], tokens_per_second=1.0, estimated_finish_at=None
    ),
    "hold": lambda leases, lease: leases.hold(lease),
    "finish": lambda leases, lease: leases.finish(lease, JobStatus.SUCCEEDED, now=NOW),
}


def write(database: Database, name: str, lease: Lease) -> Any:
    with database.writing() as session:
        return WRITES[name](LeaseRepository(session), lease)


def rescue(database: Database, *, after: timedelta) -> list[str]:
    with database.writing() as session:
        rescued = RecoveryRepository(session).rescue_expired(now=NOW + after)
        return [job.job_id for job in rescued]


def request_cancel(database: Database, job_id: str) -> None:
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job_id, now=NOW)


def attempts(database: Database, job_id: str) -> list[tuple[int, str, str | None]]:
    with database.reading() as session:
        rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id))
        return [(row.attempt, row.worker_id, row.outcome) for row in rows]


def messages(database: Database, job_id: str) -> list[str]:
    with database.reading() as session:
        page = EventRepository(session, DEFAULT_PROJECT_ID).list_page(job_id, after=None, limit=100)
        return [event.message for event in page.rows]


def dump_job(database: Database, job_id: str) -> list[Any]:
    """All that a worker's write could change."""
    job = get_job(database, job_id)
    columns = {column.key: getattr(job, column.key) for column in job.__table__.columns}
    with database.reading() as session:
        steps = JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job_id)
    return [columns, steps, attempts(database, job_id), messages(database, job_id)]


@pytest.mark.parametrize("claim_one", [claim, claim_check])
def test_a_lease_is_at_least_as_old_as_the_statement_that_claims(
    database: Database, claim_one: Callable[[Database], Lease | None]
) -> None:
    """A worker may be suspended after any of them, for longer than its lease."""
    file = build_file()
    with database.writing() as session:
        session.add(file)
    status = JobStatus.QUEUED if claim_one is claim else JobStatus.VALIDATING_FILES
    add_job(database, status=status, training_file_id=file.id)
    executed_s: dict[str, float] = {}

    def note(_1: object, _2: object, statement: str, *_: object) -> None:
        executed_s[statement.partition(" SET ")[0]] = steady_s()

    listen(database.engine, "before_cursor_execute", note)
    began_s = steady_s()

    lease = claim_one(database)

    assert lease is not None
    claiming = "UPDATE jobs" if claim_one is claim else "UPDATE data_checks"
    assert began_s <= lease.claimed_s <= executed_s[claiming]


def test_every_write_of_the_repository_is_in_the_table_above() -> None:
    """A new method must be fenced too, or be one of those that need no lease."""
    public = {name for name in vars(LeaseRepository) if not name.startswith("_")}

    assert public - WRITES.keys() == {"claim", "note"}


def test_the_oldest_job_is_claimed_first(database: Database) -> None:
    first, second = add_job(database), add_job(database)

    assert [claim(database).job_id, claim(database).job_id] == [first.id, second.id]
    with database.writing() as session:
        assert LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None


def test_a_claim_starts_the_job(database: Database) -> None:
    job = add_job(database)

    lease = claim(database, "worker-7")

    job = get_job(database, job.id)
    assert (lease.attempt, lease.config.seed, lease.base_model) == (1, 7, "tiny")
    assert (job.status, job.worker_id, job.started_at) == (JobStatus.RUNNING, "worker-7", NOW)
    assert job.lease_expires_at == NOW + MINUTE
    assert attempts(database, job.id) == [(1, "worker-7", None)]


@pytest.mark.parametrize("name", WRITES)
def test_the_owner_of_the_newest_attempt_may_write(database: Database, name: str) -> None:
    add_job(database)

    write(database, name, claim(database))


@pytest.mark.parametrize("name", WRITES)
def test_a_newer_attempt_fences_out_the_older(database: Database, name: str) -> None:
    job = add_job(database)
    old = claim(database, "worker-1")
    rescue(database, after=2 * MINUTE)
    claim(database, "worker-2", now=NOW + 2 * MINUTE)
    before = dump_job(database, job.id)

    with pytest.raises(LeaseLostError):
        write(database, name, old)

    assert dump_job(database, job.id) == before


@pytest.mark.parametrize("name", WRITES)
def test_the_same_worker_is_fenced_out_of_its_own_older_attempt(
    database: Database, name: str
) -> None:
    add_job(database)
    old = claim(database)
    rescue(database, after=2 * MINUTE)
    claim(database, now=NOW + 2 * MINUTE)

    with pytest.raises(LeaseLostError):
        write(database, name, old)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.CANCELLED])
def test_nobody_writes_to_a_job_that_has_ended(
    database: Database, name: str, status: JobStatus
) -> None:
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        LeaseRepository(session).finish(lease, status, now=NOW)
    before = dump_job(database, job.id)

    with pytest.raises(LeaseLostError):
        write(database, name, lease)

    assert dump_job(database, job.id) == before


@pytest.mark.parametrize("name", WRITES)
def test_nobody_writes_to_a_job_that_was_rescued(database: Database, name: str) -> None:
    add_job(database)
    lease = claim(database)
    rescue(database, after=2 * MINUTE)

    with pytest.raises(LeaseLostError):
        write(database, name, lease)


def test_what_follows_a_lost_hold_is_rolled_back(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)
    rescue(database, after=2 * MINUTE)

    def publish() -> None:
        with database.writing() as session:
            CheckpointRepository(session, DEFAULT_PROJECT_ID).add(build_checkpoint(job))
            LeaseRepository(session).hold(lease)

    with pytest.raises(LeaseLostError):
        publish()

    with database.reading() as session:
        page = CheckpointRepository(session, DEFAULT_PROJECT_ID).list_page(
            job.id, after=None, limit=10
        )
    assert page.rows == []


@pytest.mark.parametrize("poll", ["renew", "read_requested_action"])
def test_a_worker_learns_what_the_user_wants(database: Database, poll: str) -> None:
    job = add_job(database)
    lease = claim(database)

    seen = [write(database, poll, lease)]
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job.id, now=NOW)
    seen.append(write(database, poll, lease))
    request_cancel(database, job.id)
    seen.append(write(database, poll, lease))

    assert seen == [RequestedAction.CONTINUE, RequestedAction.PAUSE, RequestedAction.CANCEL]


def test_a_renewal_moves_the_end_of_the_lease(database: Database) -> None:
    job = add_job(database)

    write(database, "renew", claim(database))

    assert get_job(database, job.id).lease_expires_at == NOW + 2 * MINUTE


def test_a_higher_priority_is_claimed_first(database: Database) -> None:
    low, first, second = (add_job(database, priority=priority) for priority in (-1, 5, 5))

    assert [claim(database).job_id for _ in range(3)] == [first.id, second.id, low.id]


def test_what_was_logged_beyond_the_point_of_resumption_is_void(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)
    rows = [build_metrics(step) for step in (1, 2, 3)]
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=1.0, estimated_finish_at=None
        )

    with database.writing() as session:
        LeaseRepository(session).begin(lease, after_step=2, now=NOW)

    with database.reading() as session:
        assert JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id) == rows[:2]
    assert get_job(database, job.id).trained_steps == 2
    assert "Fine-tuning job resumed after step 2" in messages(database, job.id)


def test_an_attempt_without_a_saved_state_begins_an_empty_loss_log(database: Database) -> None:
    job = add_job(database)
    write(database, "record_steps", claim(database))
    rescue(database, after=2 * MINUTE)

    write(database, "begin", claim(database))

    with database.reading() as session:
        assert JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id) == []
    job = get_job(database, job.id)
    assert (job.trained_steps, job.train_loss, job.epoch) == (0, None, None)


def test_the_job_shows_its_last_step_and_its_newest_validation_loss(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)
    rows = [build_metrics(1, valid_loss=2.5), build_metrics(2)]

    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=200.0, estimated_finish_at=NOW + MINUTE
        )

    job = get_job(database, job.id)
    assert (job.trained_steps, job.train_loss, job.valid_loss) == (2, 1.5, 2.5)
    assert (job.tokens_per_second, job.estimated_finish_at) == (200.0, NOW + MINUTE)
    with database.reading() as session:
        assert JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id) == rows


def test_a_job_that_cannot_be_read_is_not_in_the_way_of_the_others(database: Database) -> None:
    """Such as one that a newer version has made."""
    unreadable, next_one = add_job(database, config={"of": "tomorrow"}), add_job(database)

    with database.writing() as session:
        assert LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None

    found = get_job(database, unreadable.id)
    assert found.status is JobStatus.FAILED
    assert found.error is not None
    assert found.error["code"] == "settings_unreadable"
    assert claim(database).job_id == next_one.id


def test_a_state_that_was_passed_over_is_not_tried_again(database: Database) -> None:
    """The loss log up to it is void from then on."""
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        states = SavedStateRepository(session, DEFAULT_PROJECT_ID)
        for step in (1, 3):
            states.add(lease, step, {}, now=NOW)

    with database.writing() as session:
        LeaseRepository(session).begin(lease, after_step=1, now=NOW)

    with database.reading() as session:
        assert SavedStateRepository(session, DEFAULT_PROJECT_ID).newest_step(job.id) == 1


def test_a_renewal_is_no_change_that_readers_hear_of(database: Database) -> None:
    job = add_job(database)
    lease = claim(database)
    before = get_job(database, job.id)

    write(database, "renew", lease)

    after = get_job(database, job.id)
    assert after.lease_expires_at != before.lease_expires_at
    assert after.updated_at == before.updated_at


@pytest.mark.parametrize(("act", "hot"), [("renew", 1), ("record_steps", 0)])
def test_a_renewal_writes_no_index(database: Database, act: str, hot: int) -> None:
    if database.engine.dialect.name != "postgresql":
        return  # SQLite writes only the indexes whose columns change
    add_job(database)
    lease = claim(database)
    counted = text("SELECT pg_stat_get_xact_tuples_hot_updated(CAST('jobs' AS regclass))")

    with database.writing() as session:
        WRITES[act](LeaseRepository(session), lease)
        session.flush()
        assert session.scalar(counted) == hot
