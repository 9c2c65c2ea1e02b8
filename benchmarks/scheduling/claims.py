"""Claims by many connections at once, with a short and a long queue, and what one claim reads."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import event, text

from app.core.abilities.needs import Needs, needs_of
from app.core.clock import utc_now
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.machines.claims import Claims
from app.core.db.session import Database, Session
from app.core.errors import DatabaseBusyError
from app.core.job.artifacts import NUMERICS_VERSION
from app.core.job.status import JobStatus
from app.core.machine.memory import Memory
from benchmarks.scheduling.queues import (
    BASE_MODEL,
    GB,
    Tenant,
    ability_with,
    add_jobs,
    indexed_later,
    vacuum,
)

MINUTE = timedelta(minutes=1)
BIG = Memory(total=64 * GB, free=64 * GB)
SMALL = Memory(total=16 * GB, free=16 * GB)
TINY = Memory(total=4 * GB, free=4 * GB)
"""Memory of a machine that no job fits."""

_PLANS = 999
_FITS = needs_of(BASE_MODEL, 8 * GB)
_PLANNED = replace(Needs.parse(_FITS), threads=1, numerics=NUMERICS_VERSION)
CASES: dict[str, tuple[Sequence[int], Sequence[str] | None]] = {
    "all fit": ((8 * GB,) * 20, None),
    "too large": ((24 * GB,) * 19 + (8 * GB,), None),
    "other base model": (
        (8 * GB,) * 20,
        [needs_of("other", 8 * GB)] * 19 + [_FITS],
    ),
    "999 plans of other machines": (
        (8 * GB,) * (_PLANS + 1),
        [str(replace(_PLANNED, environment=f"{n:016}")) for n in range(_PLANS)] + [_FITS],
    ),
    "a little too large": ((16_500_000_000,) * 19 + (8_600_000_000,), None),
}
"""What the jobs of a project need, in turn. The last one fits `SMALL` and waits behind all others.

Those of the last project are all of one line, because their memory has the same power of two.
"""

_MAY_START = text(
    "UPDATE projects "
    "SET max_running_jobs = CASE WHEN id = coalesce(CAST(:whose AS text), id) THEN NULL ELSE 0 END"
)

RUN_FIRST = text("""
UPDATE jobs SET status = 'running', attempt = 1, worker_id = 'worker-0', lease_expires_at = :until
WHERE id IN (SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT :number)
""")
"""Lets the oldest jobs run."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the statements of one transaction read, by EXPLAIN ANALYZE."""

    statements: int
    pages: int
    """Pages of 8 KiB, each time that one was looked at."""
    rows: int
    """Rows of tables and entries of indexes."""

    def __str__(self) -> str:
        return f"{self.statements} statements, {self.pages:,} pages, {self.rows:,} rows"


@dataclass(frozen=True, slots=True)
class Claimed:
    """What some connections have claimed in some time."""

    number: int
    seconds: float
    busy: int
    """How often the database said that it was busy."""
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return self.number / self.seconds


def add_cases(database: Database, each: int) -> None:
    """Add a project for each of the cases, with so many jobs each."""
    with indexed_later(database):
        for number, (name, (memory, needs)) in enumerate(CASES.items()):
            last = 0 if name == "all fit" else 1
            tenant = Tenant(name, each)
            add_jobs(database, tenant, first=number * each, memory=memory, needs=needs, last=last)
    vacuum(database)


def show_only(database: Database, project_id: str | None) -> None:
    """Let only jobs of one project start. None: those of all."""
    with database.writing() as session:
        session.execute(_MAY_START, {"whose": project_id})


def claim_and_end(url: str, seconds: float, number: int, barrier: Any) -> list[float]:
    """Claim jobs and end each at once. Returns the duration of each claim; -1 for a refusal."""
    database = Database(url)
    with database.reading() as session:
        Claims(session, ability_with(BIG.total), BIG).is_any(now=utc_now())
    barrier.wait(60)
    took: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        try:
            with database.writing() as session:
                lease = _claim(session, f"worker-{number}", BIG)
        except DatabaseBusyError:
            took.append(-1.0)
            continue
        took.append(time.perf_counter() - began_s)
        if lease is None:
            break
        with database.writing() as session:
            LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=utc_now())
    database.dispose()
    return took


def measure_claims(database: Database, *, connections: int, seconds: float) -> Claimed:
    """Claim with so many connections at once, each in a process of its own."""
    url = database.engine.url.render_as_string(hide_password=False)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(connections) as pool:
        barrier = manager.Barrier(connections)
        work = [(url, seconds, number, barrier) for number in range(connections)]
        found = [one for each in pool.starmap(claim_and_end, work) for one in each]
    claims = sorted(one for one in found if one >= 0)
    return Claimed(
        number=len(claims),
        seconds=seconds,
        busy=len(found) - len(claims),
        p50_ms=1000 * statistics.median(claims),
        p99_ms=1000 * claims[int(0.99 * (len(claims) - 1))],
    )


def cost_of_claim(database: Database, memory: Memory) -> Cost:
    """What one claim costs. Nothing is claimed."""

    def claim(session: Session) -> None:
        _claim(session, "worker-1", memory)

    return _cost(database, claim)


def cost_of_poll(database: Database, memory: Memory) -> Cost:
    """What an idle worker's question for a job costs."""

    def ask(session: Session) -> None:
        Claims(session, ability_with(memory.total), memory).is_any(now=utc_now())

    return _cost(database, ask)


def _claim(session: Session, worker_id: str, memory: Memory) -> Lease | None:
    return LeaseRepository(session).claim(
        worker_id,
        now=utc_now(),
        lease_for=MINUTE,
        memory=memory,
        ability=ability_with(memory.total),
    )


def _cost(database: Database, act: Callable[[Session], None]) -> Cost:
    asked = _asked(database, act)
    plans = [_explain(database, statement, values) for statement, values in asked]
    pages = sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)
    return Cost(len(asked), pages, sum(map(_rows, plans)))


def _rows(plan: dict[str, Any]) -> int:
    """Rows of tables and entries of indexes that a plan has read."""
    found = sum(map(_rows, plan.get("Plans", ())))
    if "Scan" in plan["Node Type"] and plan["Node Type"] not in ("CTE Scan", "WorkTable Scan"):
        each = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        found += round(each * plan["Actual Loops"])
    return found


def _asked(database: Database, act: Callable[[Session], None]) -> list[tuple[str, Any]]:
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH", "UPDATE")):
            asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with Session(database.engine) as session:
            act(session)
            session.rollback()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return asked


def _explain(database: Database, statement: str, values: Any) -> dict[str, Any]:
    with database.engine.connect() as connection:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        plan = connection.exec_driver_sql(explain, values).scalar_one()[0]["Plan"]
        connection.rollback()
    return plan
