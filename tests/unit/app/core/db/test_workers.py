"""The table of workers: who runs, and who has died."""

from datetime import timedelta

from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import (
    KEPT_FOR,
    SILENT_AFTER,
    WorkerRepository,
    WorkerState,
)
from app.core.db.session import Database
from app.core.db.worker_tables import WorkerRow
from app.core.version import VERSION
from tests.builders import MINUTE, NOW, add_job, add_worker, build_identity, claim, list_workers

SECOND = timedelta(seconds=1)


def ids(database: Database) -> list[str]:
    return [worker.identity.worker_id for worker in list_workers(database)]


def beat(database: Database, *, seconds: int, is_stopping: bool = False) -> None:
    with database.writing() as session:
        now = NOW + timedelta(seconds=seconds)
        WorkerRepository(session).beat(build_identity(), now=now, is_stopping=is_stopping)


def test_the_first_heartbeat_registers_a_worker_and_later_ones_renew_it(database: Database) -> None:
    beat(database, seconds=0)
    beat(database, seconds=10)

    with database.reading() as session:
        row = session.get(WorkerRow, "worker-1")
    assert row is not None
    assert (row.host, row.pid, row.process_started, row.version) == ("host-1", 1, 1, VERSION)
    assert (row.started_at, row.heartbeat_at) == (NOW, NOW + 10 * SECOND)
    assert ids(database) == ["worker-1"]


def test_a_worker_is_idle_or_runs_a_job_or_drains(database: Database) -> None:
    add_job(database)
    seen: list[WorkerState] = []

    beat(database, seconds=0)
    seen.append(list_workers(database)[0].state)
    claim(database)
    seen.append(list_workers(database)[0].state)
    beat(database, seconds=1, is_stopping=True)
    seen.append(list_workers(database)[0].state)

    assert seen == [WorkerState.IDLE, WorkerState.RUNNING, WorkerState.DRAINING]


def test_a_worker_remembers_since_when_it_is_stopping(database: Database) -> None:
    for seconds in (5, 15):
        beat(database, seconds=seconds, is_stopping=True)

    with database.reading() as session:
        row = session.get(WorkerRow, "worker-1")
    assert row is not None
    assert row.stopping_at == NOW + 5 * SECOND


def test_a_worker_is_alive_until_its_heartbeat_is_too_old(database: Database) -> None:
    add_worker(database)
    alive: list[tuple[int, bool]] = []

    for age in (SILENT_AFTER, SILENT_AFTER + SECOND):
        with database.reading() as session:
            count = WorkerRepository(session).count_alive(now=NOW + age)
        alive.append((count, list_workers(database)[0].is_silent(now=NOW + age)))

    assert alive == [(1, False), (0, True)]


def test_a_dead_worker_is_forgotten_once_its_job_is_put_back(database: Database) -> None:
    job = add_job(database)
    add_worker(database)
    claim(database)

    with database.writing() as session:
        WorkerRepository(session).remove(["worker-1"])
    assert ids(database) == ["worker-1"]

    with database.writing() as session:
        (rescued,) = RecoveryRepository(session).rescue_orphans(["worker-1"], now=NOW)
        assert rescued.job_id == job.id
        WorkerRepository(session).remove(["worker-1"])
    assert ids(database) == []


def test_only_the_jobs_of_dead_workers_are_put_back(database: Database) -> None:
    first, _second = add_job(database), add_job(database)
    claim(database, "worker-1")
    claim(database, "worker-2")

    with database.writing() as session:
        recovery = RecoveryRepository(session)
        assert recovery.rescue_orphans([], now=NOW) == []
        (rescued,) = recovery.rescue_orphans(["worker-1", "worker-3"], now=NOW)
        assert rescued.job_id == first.id


def test_workers_that_are_silent_for_a_day_are_forgotten(database: Database) -> None:
    add_worker(database, "worker-1", now=NOW - KEPT_FOR - SECOND)
    add_worker(database, "worker-2", now=NOW - KEPT_FOR + MINUTE)

    with database.writing() as session:
        WorkerRepository(session).remove_silent(now=NOW)

    assert ids(database) == ["worker-2"]
