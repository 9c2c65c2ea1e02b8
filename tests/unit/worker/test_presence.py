"""A worker's heartbeat, and what `tunery worker --check` makes of it."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from app.core.base_models import Catalogue
from app.core.clock import utc_now
from app.core.db.repositories.workers import (
    SILENT_AFTER,
    Crowd,
    WorkerIdentity,
    WorkerRepository,
)
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_job, add_worker, build_identity, claim, list_workers
from tests.fakes import FakeLauncher, FrozenClock
from tests.waiting import wait_until
from worker.attempt.lease_keeper import Resources
from worker.health import UnhealthyError, check_health
from worker.launch.locks import start_ticks
from worker.presence import FEW, Pace, Presence, this_worker

WITHIN_S = 30


def build_presence(
    database: Database, clock: FrozenClock, *, is_stopping: bool = False
) -> Presence:
    return Presence(
        build_identity(),
        database,
        clock=clock,
        is_stopping=lambda: is_stopping,
        memory_bytes=8 * 1024**3,
        interval_s=0.01,
    )


def test_a_worker_is_registered_while_its_block_runs(
    database: Database, clock: FrozenClock
) -> None:
    with build_presence(database, clock).keep():
        (worker,) = list_workers(database)
        assert worker.identity == build_identity()
        clock.advance(timedelta(seconds=5))
        wait_until(
            lambda: list_workers(database)[0].heartbeat_at == NOW + timedelta(seconds=5),
            within_s=WITHIN_S,
        )

    assert list_workers(database) == []


def test_a_heartbeat_counts_the_living_workers_and_the_idle_ones(
    database: Database, clock: FrozenClock
) -> None:
    pace = Pace()
    add_worker(database, "worker-2")
    add_worker(database, "worker-3", NOW - 2 * SILENT_AFTER)
    add_job(database)
    claim(database, "worker-2")
    options = {"is_stopping": lambda: False, "memory_bytes": 1, "interval_s": 60}

    with Presence(build_identity(), database, clock=clock, pace=pace, **options).keep():
        assert pace.crowd == Crowd(living=2, idle=1)


def test_a_few_workers_ask_as_often_as_one() -> None:
    pace = Pace()
    pace.crowd = Crowd(living=FEW, idle=FEW)

    assert pace.while_idle_s(0.2, most_s=5) == 0.2
    assert pace.always_s(1.0, most_s=10) == 1.0


def test_a_thousand_workers_ask_about_as_often_as_a_few() -> None:
    pace = Pace()
    pace.crowd = Crowd(living=1000, idle=100)
    pauses_s = [pace.while_idle_s(0.2) for _ in range(1000)]

    questions_a_second = sum(1 / pause_s for pause_s in pauses_s[:100])

    assert FEW / 0.2 <= questions_a_second <= 2 * FEW / 0.2
    assert len(set(pauses_s)) > 900, "they would all ask at once"
    assert max(pace.always_s(1.0, most_s=10) for _ in range(1000)) <= 10


def test_a_pause_is_never_shorter_than_it_was_set() -> None:
    pace = Pace()
    pace.crowd = Crowd(living=1000, idle=1000)

    assert pace.while_idle_s(60.0, most_s=5) == 60.0
    pace.crowd = Crowd(living=FEW + 1, idle=FEW + 1)
    assert min(pace.while_idle_s(0.2, most_s=5) for _ in range(1000)) >= 0.2


@pytest.mark.only_sqlite  # no database is asked
@pytest.mark.parametrize("seconds", [(60.0, 2.0), (12.0, 1.0), (1.0, 0.5)])
def test_a_crowd_looks_for_a_cancel_and_renews_in_time(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    seconds: tuple[float, float],
) -> None:
    lease_s, most_s = seconds
    pace = Pace()
    pace.crowd = Crowd(living=1000, idle=0)
    settings = settings.model_copy(update={"lease_s": lease_s})
    resources = Resources(settings, database, store, catalogue, FakeLauncher(), pace=pace)

    pauses_s = [resources.poll_interval_s() for _ in range(1000)]

    assert min(pauses_s) >= 0.5
    assert most_s * 0.9 < max(pauses_s) <= most_s


def test_a_worker_that_was_forgotten_while_it_was_suspended_registers_again(
    database: Database, clock: FrozenClock
) -> None:
    with build_presence(database, clock).keep():
        with database.writing() as session:
            WorkerRepository(session).remove_all()
        wait_until(lambda: list_workers(database), within_s=WITHIN_S)


def test_a_worker_continues_without_its_heartbeat_and_says_so_once(
    database: Database, clock: FrozenClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a database that is busy, away or full."""
    caplog.set_level(logging.INFO, "worker.presence")
    refused: list[object] = []
    event.listen(database.engine, "handle_error", refused.append)

    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE workers RENAME TO elsewhere"))
    with ExitStack() as running:
        try:
            running.enter_context(build_presence(database, clock).keep())
            wait_until(lambda: len(refused) >= 3, within_s=WITHIN_S)
        finally:
            with database.engine.begin() as connection:
                connection.execute(text("ALTER TABLE elsewhere RENAME TO workers"))
        wait_until(lambda: list_workers(database), within_s=WITHIN_S)

    levels = [record.levelname for record in caplog.records if record.name == "worker.presence"]
    assert levels == ["WARNING", "INFO"]
    assert list_workers(database) == []


@pytest.fixture
def of_this_service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("TUNERY_DATABASE_URL", settings.database_url)


@pytest.fixture
def child() -> Iterator[WorkerIdentity]:
    """A worker in a process of its own on this host."""
    process = subprocess.Popen(["sleep", "60"])
    yield replace(
        this_worker("worker-2"), pid=process.pid, process_started=start_ticks(process.pid) or 0
    )
    process.kill()
    process.wait()


def beat(database: Database, worker: WorkerIdentity, *, age: timedelta = timedelta(0)) -> None:
    with database.writing() as session:
        WorkerRepository(session).beat(worker, now=utc_now() - age)


@pytest.mark.usefixtures("of_this_service")
def test_a_worker_with_a_recent_heartbeat_is_healthy(
    database: Database, child: WorkerIdentity
) -> None:
    beat(database, child)

    assert check_health() == f"worker-2 (process {child.pid}) is idle"


@pytest.mark.usefixtures("of_this_service")
def test_a_host_without_a_worker_is_unhealthy_whoever_runs_elsewhere(database: Database) -> None:
    beat(database, build_identity(host="another machine"))

    with pytest.raises(UnhealthyError, match="No worker runs on this host"):
        check_health()


@pytest.mark.usefixtures("of_this_service")
def test_a_frozen_worker_is_unhealthy_also_beside_one_that_works(
    database: Database, child: WorkerIdentity
) -> None:
    beat(database, this_worker("worker-1"))
    beat(database, child, age=SILENT_AFTER + timedelta(seconds=11))

    with pytest.raises(UnhealthyError, match=r"worker-2 .* has sent no heartbeat for 41 s"):
        check_health()


@pytest.mark.usefixtures("of_this_service")
def test_a_worker_that_was_killed_is_unhealthy_at_once(
    database: Database, child: WorkerIdentity
) -> None:
    beat(database, child)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: start_ticks(child.pid) is None, within_s=WITHIN_S)

    with pytest.raises(UnhealthyError, match=r"Died: worker-2"):
        check_health()
    beat(database, this_worker("worker-1"))  # its successor
    assert "worker-1" in check_health()


@pytest.mark.only_sqlite
@pytest.mark.usefixtures("of_this_service")
def test_a_service_that_never_ran_is_unhealthy_and_gets_no_database(settings: Settings) -> None:
    with pytest.raises(UnhealthyError, match="There is no database"):
        check_health()

    assert not (settings.data_dir / "tunery.db").exists()


def test_a_health_check_loads_neither_torch_nor_the_api() -> None:
    script = """
import sys
sys.argv = ["tunery", "worker", "--check"]
from tunery.__main__ import main
try:
    main()
finally:
    print(sorted({"torch", "transformers", "fastapi", "typer", "uvicorn"} & sys.modules.keys()))
"""
    environment = os.environ | {"TUNERY_DATA_DIR": "/nowhere"}
    check = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )

    assert (check.returncode, check.stdout.strip()) == (1, "[]")
    assert check.stderr.startswith("unhealthy: ")
    assert check.stderr.count("\n") == 1
