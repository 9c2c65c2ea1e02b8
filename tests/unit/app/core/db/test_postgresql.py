"""What is PostgreSQL's own, on a real server: locks, limits, and that it may go away."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import InternalError

from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.db import postgresql as postgresql_module
from app.core.db.postgres.connections import MAX_CONNECTIONS
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import ExpiredFiles, FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.queue import Turns
from app.core.db.repositories.saved_states import SavedStateRepository, UnneededStates
from app.core.db.session import Database, Session
from app.core.db.tables import File
from app.core.errors import (
    DatabaseAwayError,
    DatabaseBusyError,
    NotFoundError,
    OutcomeUnknownError,
    StateConflictError,
    StorageFullError,
)
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.services.files import delete_file
from benchmarks.support.postgres import MAX_CONNECTIONS as MAX_CONNECTIONS_OF_THE_SERVER
from benchmarks.support.postgres import PostgresServer
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    add_project,
    build_file,
    build_job,
    build_job_in,
    build_saved_state,
    get_job,
    list_messages,
    lock_out_writers,
)
from tests.waiting import wait_until


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """For a process that waits a second at most."""
    database = Database(url, busy_timeout_s=1)
    yield database
    database.dispose()


@pytest.fixture
def other(url: str) -> Iterator[Database]:
    """Another process."""
    other = Database(url)
    yield other
    other.dispose()


def show(session: Session, setting: str) -> object:
    return session.scalar(text(f"SHOW {setting}"))


def end_connection(session: Session, other: Database) -> None:
    """What an administrator does, or a server that is shut down."""
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    with other.writing() as administrator:
        administrator.execute(text(f"SELECT pg_terminate_backend({pid}, 10000)"))


def close_behind(session: Session) -> None:
    """The network fails: no word comes any more, from either side."""
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.pgconn.finish()


def fail_after_commit(session: Session) -> None:
    """The commit comes through, and its confirmation does not."""
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    commit = driver.commit

    def commit_and_lose() -> None:
        commit()
        driver.pgconn.finish()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    driver.commit = commit_and_lose


def fail_before_commit(session: Session) -> None:
    """The commit never arrives."""
    driver = session.connection().connection.driver_connection
    assert isinstance(driver, psycopg.Connection)

    def lose() -> None:
        driver.pgconn.finish()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    driver.commit = lose


def test_a_url_without_a_driver_means_psycopg(url: str) -> None:
    plain = Database(url.replace("postgresql+psycopg:", "postgresql:"))

    job = add_job(plain)

    assert plain.engine.driver == "psycopg"
    assert get_job(plain, job.id).id == job.id
    plain.dispose()


def test_a_writer_sees_anew_and_waits_for_nobody_for_ever(database: Database) -> None:
    with database.writing() as session:
        assert show(session, "transaction_isolation") == "read committed"
        assert show(session, "transaction_read_only") == "off"
        assert show(session, "lock_timeout") == "1s"
        assert show(session, "idle_in_transaction_session_timeout") == "10s"
        assert show(session, "application_name") == "tunery"


def test_a_reader_sees_one_moment_and_cannot_write(database: Database) -> None:
    with database.reading() as session:
        assert show(session, "transaction_isolation") == "repeatable read"
        assert show(session, "transaction_read_only") == "on"


def test_a_connection_that_is_in_use_is_closed_once_it_is_returned(database: Database) -> None:
    with database.reading() as session:
        connection: Any = session.connection().connection.dbapi_connection
        database.dispose()
        assert not connection.closed

    assert connection.closed


def test_what_the_url_says_wins(url: str) -> None:
    options = {"options": "-c lock_timeout=7s", "application_name": "mine"}
    parsed = make_url(url).update_query_dict(options)
    database = Database(parsed.render_as_string(hide_password=False))

    with database.reading() as session:
        assert show(session, "lock_timeout") == "7s"
        assert show(session, "idle_in_transaction_session_timeout") == "10s"
        assert show(session, "application_name") == "mine"
    database.dispose()


def test_who_waits_for_a_lock_too_long_is_told_that_nothing_was_done(
    database: Database, other: Database
) -> None:
    job = add_job(database)

    with other.writing() as session:
        session.merge(job).suffix = "held"
        session.flush()
        with (
            pytest.raises(DatabaseBusyError, match=r"busy\. Nothing was done"),
            database.writing() as mine,
        ):
            mine.merge(job).suffix = "refused"

    assert get_job(database, job.id).suffix == "held"


def test_of_two_that_wait_for_each_other_one_is_told_that_nothing_was_done(url: str) -> None:
    first, second = Database(url), Database(url)
    jobs = [add_job(first), add_job(first)]
    both_hold_one = threading.Barrier(2)

    def lock_both(database: Database, order: list[str]) -> str:
        query = text("SELECT id FROM jobs WHERE id = :id FOR UPDATE")
        try:
            with database.writing() as session:
                session.execute(query, {"id": order[0]})
                both_hold_one.wait(30)
                session.execute(query, {"id": order[1]})
        except DatabaseBusyError as error:
            return str(error)
        return "done"

    ids = [job.id for job in jobs]
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(lock_both, first, ids), threads.submit(lock_both, second, ids[::-1])]
        told = sorted(end.result(60) for end in ends)

    assert told[1] == "done"
    assert "Nothing was done" in told[0]
    first.dispose()
    second.dispose()


@pytest.mark.parametrize(
    ("state", "meant"),
    [
        *((state, DatabaseBusyError) for state in postgresql_module._BUSY),
        ("53100", StorageFullError),
        ("25006", InternalError),  # a write in a transaction that only reads: a fault of ours
    ],
)
def test_what_the_server_says_is_what_the_caller_is_told(
    state: str, meant: type[Exception], database: Database
) -> None:
    job = build_job()

    def fail() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            session.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$"))

    with pytest.raises(meant):
        fail()
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0


def test_a_process_whose_connections_are_all_in_use_is_busy(database: Database) -> None:
    with ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(database.reading()).connection()

        with pytest.raises(DatabaseBusyError, match="busy"):
            add_job(database)

    add_job(database)


def test_a_worker_keeps_one_connection_and_opens_more_as_it_needs_them(url: str) -> None:
    database = Database(url, kept_connections=1)
    with ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(database.reading()).connection()

    with database.reading() as session:
        open_now = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        wait_until(lambda: session.scalar(open_now) == 1, within_s=10)
    database.dispose()


def test_a_server_with_too_many_connections_is_away(database: Database, url: str) -> None:
    plain_url = url.replace("postgresql+psycopg:", "postgresql:")
    with ExitStack() as held:
        with pytest.raises(psycopg.OperationalError, match=r"too many|remaining connection"):  # noqa: PT012
            for _ in range(MAX_CONNECTIONS_OF_THE_SERVER + 1):
                held.enter_context(psycopg.connect(plain_url))

        with pytest.raises(DatabaseBusyError, match="Nothing was done"):
            add_job(database)

    add_job(database)


def test_a_server_that_is_gone_is_away_and_when_it_is_back_all_goes_on(
    database: Database, postgres: PostgresServer
) -> None:
    job = add_job(database)  # so there is a connection, which will be dead

    with postgres.stopped():
        with pytest.raises(DatabaseAwayError, match=r"away\. Nothing was done") as away:
            get_job(database, job.id)
        with pytest.raises(DatabaseBusyError, match=r"away\. Nothing was done"):
            add_job(database)

    assert get_job(database, job.id).id == job.id
    add_job(database)
    why = away.value.for_operator
    assert why.startswith("The database at /")
    assert "No such file" in why or "refused" in why


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_restarts_under_a_transaction_has_done_nothing_of_it(
    how: signal.Signals, database: Database, postgres: PostgresServer
) -> None:
    job = build_job()

    def write_across_a_restart() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            postgres.stop(how)
            postgres.start()

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        write_across_a_restart()

    with database.writing() as session:
        session.add(job)
    assert get_job(database, job.id).id == job.id


def test_a_connection_that_an_administrator_ends_has_done_nothing(
    database: Database, other: Database
) -> None:
    job = build_job()

    def write_and_be_ended() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            end_connection(session, other)
            session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        write_and_be_ended()
    with other.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0
    add_job(database)


def test_a_process_that_froze_in_a_transaction_does_not_hold_its_locks_for_ever(
    url: str, other: Database
) -> None:
    options = {"options": "-c idle_in_transaction_session_timeout=50"}
    impatient = make_url(url).update_query_dict(options)
    frozen = Database(impatient.render_as_string(hide_password=False))

    def freeze() -> None:
        with frozen.writing() as session:
            lock_out_writers(session)
            add_job(other)  # waits until that lock is gone
            session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        freeze()
    frozen.dispose()


def test_a_commit_whose_confirmation_is_lost_counts_as_what_it_was(database: Database) -> None:
    job = build_job(suffix="kept")

    with database.writing() as session:
        session.add(job)
        session.flush()
        fail_after_commit(session)

    assert job.suffix == "kept", "What was written can be read afterwards, as after any commit."
    assert get_job(database, job.id).suffix == "kept"


def test_a_commit_that_never_arrived_has_done_nothing(database: Database) -> None:
    job = build_job()

    def lose_the_commit() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            fail_before_commit(session)

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        lose_the_commit()

    with database.writing() as session:
        session.add(job)


def test_of_a_commit_that_nobody_can_tell_of_nothing_is_claimed(
    database: Database, postgres: PostgresServer
) -> None:
    with ExitStack() as cleanup:

        def lose_the_server(_connection: object) -> None:
            cleanup.enter_context(postgres.stopped())

        def commit_into_the_void() -> None:
            with database.writing() as session:
                session.add(build_job())
                event.listen(database.engine, "commit", lose_the_server)

        with pytest.raises(
            OutcomeUnknownError, match="it may or may not have been made"
        ) as unknown:
            commit_into_the_void()
        event.remove(database.engine, "commit", lose_the_server)

    assert "Nothing was done" not in str(unknown.value)


def test_a_connection_lost_in_a_commit_of_nothing_has_done_nothing(database: Database) -> None:
    def lose_the_commit() -> None:
        with database.writing() as session:
            session.execute(text("SELECT 1"))
            fail_before_commit(session)

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        lose_the_commit()


def test_a_network_that_fails_has_done_nothing(database: Database) -> None:
    def lose_the_network() -> None:
        with database.writing() as session:
            session.add(build_job())
            session.flush()
            close_behind(session)
            session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseBusyError, match="Nothing was done"):
        lose_the_network()
    add_job(database)


def test_a_character_that_postgresql_lacks_does_not_lose_the_text(database: Database) -> None:
    """As in the log of a training process that has crashed."""
    job = add_job(database)

    with database.writing() as session:
        EventRepository(session, DEFAULT_PROJECT_ID).add(job.id, "The end: a\0b", now=NOW)
        missing = new_id(IdPrefix.JOB) + "\0"
        assert (
            session.scalar(text("SELECT count(*) FROM jobs WHERE id = :id"), {"id": missing}) == 0
        )

    assert list_messages(database, job.id)[-1] == "The end: a\N{REPLACEMENT CHARACTER}b"


def await_one_that_waits(database: Database) -> None:
    """Until some transaction waits for a row that another has locked."""
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    def count() -> int:
        with database.reading() as session:
            return session.scalar(query) or 0

    wait_until(count, within_s=30)


def use_file(session: Session, file: File) -> None:
    """What making a job does."""
    FileRepository(session, DEFAULT_PROJECT_ID).get_to_use(file.id, now=NOW, param="training_file")
    JobRepository(session, DEFAULT_PROJECT_ID).add(build_job(training_file_id=file.id))


def try_to_delete(database: Database, file: File) -> str:
    try:
        with database.writing() as session:
            return delete_file(session, LOCAL_CALLER, file.id, now=NOW)
    except (StateConflictError, NotFoundError) as error:
        return error.code


def try_to_use(database: Database, file: File) -> str:
    try:
        with database.writing() as session:
            use_file(session, file)
    except NotFoundError as error:
        return error.code
    return "used"


def list_expired(database: Database) -> list[File]:
    with database.writing() as janitor:
        return ExpiredFiles(janitor).list_all(now=NOW + MINUTE, limit=10)


@pytest.fixture
def file(other: Database) -> File:
    file = build_file(expires_at=NOW + MINUTE)
    with other.writing() as session:
        FileRepository(session, DEFAULT_PROJECT_ID).add(file)
    return file


def test_a_file_is_not_deleted_under_a_job_that_is_being_made(other: Database, file: File) -> None:
    with ThreadPoolExecutor(1) as threads:
        with other.writing() as session:
            use_file(session, file)
            deletion = threads.submit(try_to_delete, other, file)
            await_one_that_waits(other)

        assert deletion.result(30) == "file_in_use"


def test_a_job_is_not_made_of_a_file_that_is_being_deleted(other: Database, file: File) -> None:
    with ThreadPoolExecutor(1) as threads:
        with other.writing() as session:
            delete_file(session, LOCAL_CALLER, file.id, now=NOW)
            job = threads.submit(try_to_use, other, file)
            await_one_that_waits(other)

        assert job.result(30) == "file_not_found"


def test_a_file_does_not_expire_under_a_job_that_is_being_made(other: Database, file: File) -> None:
    with other.writing() as session:
        use_file(session, file)
        assert list_expired(other) == []

    assert list_expired(other) == []


def free_states(database: Database) -> list[str]:
    with database.writing() as janitor:
        return UnneededStates(janitor).delete(held_since=NOW + MINUTE, limit=10)


def find_states(database: Database, job_id: str) -> list[str]:
    with database.writing() as session:
        return [
            state.job_id
            for state in SavedStateRepository(session, DEFAULT_PROJECT_ID).list_to_continue(job_id)
        ]


@pytest.mark.parametrize("rival", [free_states, find_states])
def test_the_saved_state_that_a_rerun_takes_is_nobody_elses(other: Database, rival: Any) -> None:
    failed = add_job(other, **build_job_in(JobStatus.FAILED))
    files = {"state": {"key": "a", "bytes": 1, "sha256": "0"}}
    with other.writing() as session:
        session.add(build_saved_state(failed.id, 1, files))
    asked = (other,) if rival is free_states else (other, failed.id)

    with ThreadPoolExecutor(1) as threads:
        with other.writing() as session:
            assert SavedStateRepository(session, DEFAULT_PROJECT_ID).list_to_continue(failed.id)
            found = threads.submit(rival, *asked)
            await_one_that_waits(other)
            job = build_job()
            JobRepository(session, DEFAULT_PROJECT_ID).add(job)
            SavedStateRepository(session, DEFAULT_PROJECT_ID).move(failed.id, job.id)

        assert found.result(30) == []
    assert find_states(other, job.id) == [job.id]


GATE = """
CREATE FUNCTION pass_gate() RETURNS boolean LANGUAGE plpgsql VOLATILE AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN true; END';
CREATE POLICY gate ON files USING (pass_gate());
ALTER TABLE files ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""
"""Stops a query on files after it has seen its moment, and before it locks a row."""


def test_a_file_that_gets_a_job_while_the_expired_are_looked_for_stays(
    other: Database, file: File
) -> None:
    with other.writing() as session:
        session.connection().exec_driver_sql(GATE)

    with ThreadPoolExecutor(1) as threads:
        with other.writing() as session:
            session.execute(text("SELECT pg_advisory_xact_lock(1)"))
            expired = threads.submit(list_expired, other)
            await_one_that_waits(other)
            JobRepository(session, DEFAULT_PROJECT_ID).add(build_job(training_file_id=file.id))

        assert expired.result(30) == []


@pytest.mark.parametrize("jobs", [1, 4])
def test_claims_at_the_same_moment_do_not_wait_for_each_other(
    database: Database, jobs: int
) -> None:
    """Each transaction that has claimed a job stays open while the others claim theirs."""
    add_project(database, "proj-b")
    for project_id in (DEFAULT_PROJECT_ID, "proj-b"):
        for _ in range(jobs):
            add_job(database, project_id=project_id)

    with ExitStack() as transactions:
        leases = [
            LeaseRepository(transactions.enter_context(database.writing())).claim(
                f"worker-{number}", now=NOW, lease_for=MINUTE
            )
            for number in range(2 * jobs)
        ]

    assert len({lease.job_id for lease in leases if lease is not None}) == 2 * jobs


def claim_in(session: Session) -> Lease | None:
    return LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE)


@pytest.fixture
def limited(other: Database) -> str:
    """A project with three jobs that may run one at once."""
    project = add_project(other, "proj-small", max_running_jobs=1)
    for _ in range(3):
        add_job(other, project_id=project.id)
    return project.id


def test_a_limit_of_running_jobs_holds_while_another_claim_is_open(
    database: Database, other: Database, limited: str
) -> None:
    add_job(database)
    with database.writing() as first:
        leases = [claim_in(first), claim_in(first)]

        assert {lease.project_id for lease in leases if lease} == {limited, DEFAULT_PROJECT_ID}
        assert other.transact(claim_in) is None


def test_a_limit_of_running_jobs_holds_if_another_claim_is_faster(
    database: Database, other: Database, limited: str
) -> None:
    with database.writing() as slow:
        (turn,) = Turns(slow).list_all(now=NOW)
        assert other.transact(claim_in) is not None

        assert not Turns(slow).may_take(turn)


def test_a_project_without_a_limit_is_not_waited_for(
    database: Database, other: Database, limited: str
) -> None:
    """Another claim has the turn of the project with the limit, and one of this one."""
    for _ in range(2):
        add_job(database)
    with database.writing() as first:
        assert claim_in(first) is not None
        assert claim_in(first) is not None

        second = other.transact(claim_in)

    assert second is not None
    assert second.project_id == DEFAULT_PROJECT_ID
