"""What workers ask of the database when they have nothing to do, and when they train.

Each figure is counted on the real worker: its loop with a launcher that starts nothing, its
janitor, its heartbeat, the two threads beside it, and what it does in each second of an attempt.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import psycopg

from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.workers import Crowd, WorkerIdentity, WorkerRepository
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from benchmarks.scheduling.load import Load, counting
from benchmarks.scheduling.queues import Tenant, filled, server
from benchmarks.support.postgres import PostgresServer
from benchmarks.support.samples import write_catalogue
from worker.attempt.lease_keeper import RENEWALS, LeaseKeeper, Resources
from worker.beside import IDLE_S, MAX_IDLE_S
from worker.data_check.loop import DataChecker
from worker.janitor import FEW, INTERVAL_S, Janitor
from worker.launch.launcher import Ending, Watcher
from worker.loop import MAX_POLL_INTERVAL_S, Worker
from worker.presence import HEARTBEAT_INTERVAL_S, Pace
from worker.tasks.loop import TaskDoer


class _NoLauncher:
    """Starts nothing."""

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        del lock, is_busy

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Habit:
    """Something that each worker does again and again."""

    name: str
    interval_s: Callable[[Pace], float]
    """Mean pause between two times, as a fleet of this size keeps it."""
    act: Callable[[], object]
    is_idle: bool | None = None
    """Whether only idle workers do it, or only those that train. None: all."""


def measure(*, workers: int, seconds: float) -> None:
    """Print what so many workers ask in a second, alone and in a crowd, and what a server can."""
    with (
        tempfile.TemporaryDirectory() as directory,
        server() as postgres,
        filled(postgres, [Tenant("proj-a", 1)]) as database,
    ):
        with database.writing() as session:
            for number in range(workers):
                identity = WorkerIdentity(f"worker-{number}", "elsewhere", 1, 1)
                WorkerRepository(session).beat(identity, now=utc_now(), memory_bytes=1)
        resources = _resources(database, Path(directory))
        habits = list_habits(resources)
        loads = [_count(database, habit.act) for habit in habits]
        for idle in (workers, 0):
            _report(habits, loads, workers=workers, idle=idle)
        for habit in habits:
            print(f"  {habit.name:17} {_cost_ms(postgres, habit.act, seconds=seconds):6.2f} ms of "
                  "the server's processors each time", flush=True)  # fmt: skip
        _measure_connections(postgres, database, habits[0].act, workers, seconds=seconds)


def list_habits(resources: Resources) -> list[Habit]:
    """Everything that a worker does without a job, and while it trains the only one."""
    settings, database = resources.settings, resources.database
    store = resources.store
    janitor = Janitor(settings, database=database, store=store, clock=utc_now)
    janitor.run_if_due()  # the chores of each hour
    janitor._done_s = 0.0  # noqa: SLF001 - the next round is due at once
    idle = Worker("worker-1", resources, lambda: None)
    checker = DataChecker("worker-1", resources, resources.launcher)
    doer = TaskDoer("worker-1", resources, resources.launcher)
    presence = idle._presence  # noqa: SLF001
    with database.writing() as session:
        lease = LeaseRepository(session).claim(
            "worker-1", now=utc_now(), lease_for=timedelta(hours=9)
        )
    assert lease is not None
    keeper = LeaseKeeper(lease, resources, lambda: None)

    def renew() -> None:
        keeper._renewed_s = 0.0  # noqa: SLF001 - it is due
        keeper.poll()

    def chores() -> None:
        janitor._done_s = 0.0  # noqa: SLF001
        janitor.run_if_due()

    poll_s, lease_s = settings.poll_interval_s, settings.lease_s
    return [
        Habit("ask for a job", lambda pace: pace.while_idle_s(
            poll_s, most_s=MAX_POLL_INTERVAL_S), idle.run_once, is_idle=True),
        Habit("chores", lambda pace: pace.while_idle_s(
            INTERVAL_S, few=FEW), chores, is_idle=True),
        Habit("heartbeat", lambda _: HEARTBEAT_INTERVAL_S, presence._beat),  # noqa: SLF001
        Habit("ask for a check", lambda pace: pace.always_s(IDLE_S, most_s=MAX_IDLE_S),
              lambda: checker.check_any(lambda: None)),
        Habit("ask for a task", lambda pace: pace.always_s(IDLE_S, most_s=MAX_IDLE_S),
              lambda: doer.do_next(lambda: None)),
        Habit("ask for a cancel", lambda pace: replace(resources, pace=pace).poll_interval_s(),
              keeper.poll, is_idle=False),
        Habit("renew the lease", lambda _: lease_s / RENEWALS, renew, is_idle=False),
    ]  # fmt: skip


def _report(habits: list[Habit], loads: list[Load], *, workers: int, idle: int) -> None:
    alone, crowd = Pace(), Pace()
    crowd.crowd = Crowd(workers, idle)
    kind = "all idle" if idle else "all training"
    print(f"{workers:,} workers, {kind}: transactions a second, each at the pace of one that is "
          "alone, and at the pace of this crowd")  # fmt: skip
    sums = [0.0, 0.0]
    for habit, load in zip(habits, loads, strict=True):
        if habit.is_idle is not None and habit.is_idle != bool(idle):
            continue
        rates = [workers / _mean_s(habit, pace) for pace in (alone, crowd)]
        asked = [rate * load.transactions for rate in rates]
        sums = [total + more for total, more in zip(sums, asked, strict=True)]
        print(f"  {habit.name:17} {load.transactions:3} transactions, {load.statements:3} "
              f"statements each time: {asked[0]:8,.0f} {asked[1]:8,.0f}")  # fmt: skip
    print(f"  {'in all':17} {'':40} {sums[0]:8,.0f} {sums[1]:8,.0f}", flush=True)


def _mean_s(habit: Habit, pace: Pace) -> float:
    return statistics.mean(habit.interval_s(pace) for _ in range(1000))


def _resources(database: Database, data_dir: Path) -> Resources:
    write_catalogue(data_dir)
    settings = Settings(_env_file=None, data_dir=data_dir, warm_s=0)  # pyright: ignore[reportCallIssue]
    store, catalogue = LocalBlobStore(settings.blobs_dir), load_catalogue(data_dir)
    return Resources(settings, database, store, catalogue, _NoLauncher())


def _count(database: Database, act: Callable[[], object]) -> Load:
    act()  # the first one fills caches, and may find something to do
    with counting(database) as load:
        act()
    return load


def _measure_connections(
    postgres: PostgresServer,
    database: Database,
    act: Callable[[], object],
    workers: int,
    *,
    seconds: float,
) -> None:
    """Print what idle connections cost the others."""
    url = database.engine.url.set(drivername="postgresql")
    address = url.render_as_string(hide_password=False)
    costs = []
    for number in (0, workers, 0):
        with contextlib.ExitStack() as stack:
            for _ in range(number):
                stack.enter_context(psycopg.connect(address))
            costs.append(_cost_ms(postgres, act, seconds=seconds))
    before, beside, after = costs
    print(f"  beside {workers:,} idle connections, to ask for a job takes "
          f"{2 * beside / (before + after):.2f} times as much")  # fmt: skip


def _cost_ms(postgres: PostgresServer, act: Callable[[], object], *, seconds: float) -> float:
    """Processor time that the server takes for it, in milliseconds."""
    times, before_s = 0, postgres.processor_s()
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        act()
        times += 1
    return 1000 * (postgres.processor_s() - before_s) / times
