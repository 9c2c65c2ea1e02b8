"""What the database layer does when the network between it and PostgreSQL fails.

Nothing may wait for ever, and everything works again by itself once the network does.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from app.core.db.postgres import connections
from app.core.db.session import Database
from app.core.db.snapshot import open_snapshot
from app.core.errors import DatabaseAwayError, OutcomeUnknownError
from benchmarks.support.postgres import PostgresServer
from tests.builders import add_job, get_job
from tests.chaos.network.link import Fault, Link, Relays
from tests.waiting import wait_until

SILENCE_S = 2
CONNECT_S = 2
BUSY_S = 1.0
IDLE_S = 3
FAULTS = [Fault.STALL, Fault.MUTE, Fault.DEAF, Fault.RESET]
BOUND_S = SILENCE_S + BUSY_S + CONNECT_S + 15
"""Silence, the search for the outcome of a commit, and what a busy machine takes."""


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections._Connection, "silence_s", SILENCE_S)
    monkeypatch.setattr(connections, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT_S", CONNECT_S)
    monkeypatch.setattr(connections, "IDLE_IN_TRANSACTION_S", IDLE_S)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture
def direct(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


@pytest.fixture
def link(url: str) -> Iterator[Link]:
    socket = Path(str(make_url(url).query["host"])) / ".s.PGSQL.5432"
    with Relays() as relays:
        link = Link(relays, socket)
        yield link
        link.close()


@pytest.fixture
def remote(url: str, link: Link) -> Iterator[Database]:
    """The database, as a worker on another machine reaches it."""
    parsed = make_url(url)
    parsed = parsed.set(host=link.host, port=link.port).difference_update_query(["host"])
    database = Database(parsed.render_as_string(hide_password=False), busy_timeout_s=BUSY_S)
    assert read(database) == 0  # so there is a connection, which is useless after a fault
    yield database
    database.dispose()


def took_s(act: Callable[[], object]) -> float:
    began_s = time.monotonic()
    act()
    return time.monotonic() - began_s


def read(database: Database) -> int | None:
    with database.reading() as session:
        return session.scalar(text("SELECT count(*) FROM jobs"))


def rename(database: Database, job_id: str, suffix: str) -> None:
    with database.writing() as session:
        job = text("UPDATE jobs SET suffix = :suffix WHERE id = :id")
        session.execute(job, {"suffix": suffix, "id": job_id})


@pytest.mark.parametrize("arrives", ["late", "never"])
@pytest.mark.parametrize("fault", FAULTS)
def test_who_is_cut_off_is_told_in_time_and_goes_on_later(
    fault: Fault, arrives: str, remote: Database, link: Link
) -> None:
    link.fail(fault)

    def be_refused() -> None:
        with pytest.raises(DatabaseAwayError, match=r"away\. Nothing was done"):
            read(remote)

    assert took_s(be_refused) < BOUND_S
    link.heal(delivers=arrives == "late")
    assert read(remote) == 0
    assert link.connections > 1


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_cut_off_in_a_transaction_does_nothing_and_locks_nobody_out(
    fault: Fault, remote: Database, direct: Database, link: Link
) -> None:
    job = add_job(direct)

    def write_and_lose_the_network() -> None:
        with remote.writing() as session:
            session.execute(text("UPDATE jobs SET suffix = 'lost'"))
            link.fail(fault)
            session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseAwayError):
        write_and_lose_the_network()
    rename(direct, job.id, "next")  # the link still holds the connection open for the server

    link.heal(delivers=True)
    assert read(remote) == 1
    assert get_job(direct, job.id).suffix == "next"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_commit_into_a_dead_network_is_of_unknown_outcome(
    fault: Fault, remote: Database, direct: Database, link: Link
) -> None:
    job = add_job(direct)

    def commit_into_the_void() -> None:
        with remote.writing() as session:
            session.execute(text("UPDATE jobs SET suffix = 'perhaps'"))
            commit = session.commit

            def lose_the_network() -> None:
                link.fail(fault)
                commit()

            session.commit = lose_the_network

    def be_told() -> None:
        with pytest.raises(OutcomeUnknownError):
            commit_into_the_void()

    assert took_s(be_told) < BOUND_S
    link.heal(delivers=True)
    wait_until(lambda: count_open(direct) == 0, within_s=10)
    came_through = get_job(direct, job.id).suffix == "perhaps"
    assert came_through or fault is not Fault.DEAF
    assert not came_through or fault is not Fault.RESET
    assert read(remote) == 1


def count_open(database: Database) -> int:
    """Number of transactions that are open in other sessions."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL"
    with database.reading() as session:
        return session.scalar(text(f"{query} AND pid <> pg_backend_pid()")) or 0


def test_only_what_may_take_long_may_be_silent(direct: Database) -> None:
    nap = text(f"SELECT pg_sleep({SILENCE_S + 1})")

    def take_long() -> None:
        with direct.reading() as session:
            session.execute(nap)

    with open_snapshot(direct) as session:
        session.execute(nap)
    with direct.backend.migrating() as migration:
        migration.execute(nap)
    with pytest.raises(DatabaseAwayError) as away:  # on a connection that was used for both
        take_long()
    assert "no answer for 2 s" in away.value.for_operator
