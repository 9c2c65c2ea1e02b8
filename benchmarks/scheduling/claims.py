"""Claims by many connections at once, with a short and a long queue, and what one claim reads."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import event, text

from app.core.clock import utc_now
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.queue import Turns
from app.core.db.session import Database, Session
from app.core.errors import DatabaseBusyError
from app.core.job.status import JobStatus
from app.core.machine.memory import Memory
from benchmarks.scheduling.queues import GB

MINUTE = timedelta(minutes=1)
BIG = Memory(total=64 * GB, free=64 * GB)
SMALL = Memory(total=16 * GB, free=16 * GB)

PUT_SMALL_LAST = text("UPDATE jobs SET priority = -1 WHERE needed_memory_bytes <= 16000000000")
"""Puts the jobs that fit `SMALL` behind all others."""

RUN_FIRST = text("""
UPDATE jobs SET status = 'running', attempt = 1, worker_id = 'worker-0', lease_expires_at = :until
WHERE id IN (SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT :number)
""")
"""Lets the oldest jobs run."""


@dataclass(frozen=True, slots=True)
class Claims:
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


def claim_and_end(url: str, seconds: float, number: int, barrier: Any) -> list[float]:
    """Claim jobs and end each at once. Returns the duration of each claim; -1 for a refusal."""
    database = Database(url)
    with database.reading() as session:
        Turns(session).is_any(now=utc_now())
    barrier.wait(60)
    took: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        began_s = time.perf_counter()
        try:
            with database.writing() as session:
                lease = LeaseRepository(session).claim(
                    f"worker-{number}", now=utc_now(), lease_for=MINUTE, memory=BIG
                )
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


def measure_claims(database: Database, *, connections: int, seconds: float) -> Claims:
    """Claim with so many connections at once, each in a process of its own."""
    url = database.engine.url.render_as_string(hide_password=False)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(connections) as pool:
        barrier = manager.Barrier(connections)
        work = [(url, seconds, number, barrier) for number in range(connections)]
        found = [one for each in pool.starmap(claim_and_end, work) for one in each]
    claims = sorted(one for one in found if one >= 0)
    return Claims(
        number=len(claims),
        seconds=seconds,
        busy=len(found) - len(claims),
        p50_ms=1000 * statistics.median(claims),
        p99_ms=1000 * claims[int(0.99 * (len(claims) - 1))],
    )


def time_claim(database: Database, memory: Memory, *, rounds: int) -> float:
    """Median time of a claim that is rolled back, in milliseconds."""
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        with Session(database.engine) as session:
            LeaseRepository(session).claim(
                "worker-1", now=utc_now(), lease_for=MINUTE, memory=memory
            )
            took.append(time.perf_counter() - began_s)
            session.rollback()
    return 1000 * statistics.median(took)


def pages_of_claim(database: Database, memory: Memory) -> int:
    """Pages of the database that the statements of one claim read, by EXPLAIN ANALYZE."""

    def claim(session: Any) -> None:
        LeaseRepository(session).claim("worker-1", now=utc_now(), lease_for=MINUTE, memory=memory)

    return sum(_pages(database, statement, values) for statement, values in _asked(database, claim))


def pages_of_poll(database: Database) -> int:
    """Pages that an idle worker's question for a job reads."""

    def ask(session: Any) -> None:
        Turns(session).is_any(now=utc_now())

    return sum(_pages(database, statement, values) for statement, values in _asked(database, ask))


def _asked(database: Database, act: Callable[[Any], None]) -> list[tuple[str, Any]]:
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


def _pages(database: Database, statement: str, values: Any) -> int:
    with database.engine.connect() as connection:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        plan = connection.exec_driver_sql(explain, values).scalar_one()[0]["Plan"]
        connection.rollback()
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
