"""8 processes take 60,000 jobs out of one queue, and end each at once.

    python -m tests.chaos.claims --jobs 60000 --processes 8 --database postgresql

Every job must be claimed exactly once, and no process may be told that the database is busy. It
prints claims per second. With --ended N, that many jobs that have ended lie in the table as well.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, insert, select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.migrate import upgrade
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.errors import DatabaseBusyError
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from benchmarks.support.databases import new_database
from tests.builders import NOW, build_config

_BATCH = 5000


def fill(database: Database, count: int, status: JobStatus) -> None:
    config = build_config().model_dump(mode="json")
    for first in range(0, count, _BATCH):
        rows = [
            {
                "id": new_id(IdPrefix.JOB),
                "project_id": DEFAULT_PROJECT_ID,
                "status": status,
                "created_at": NOW,
                "finished_at": NOW if status.is_terminal else None,
                "base_model": "tiny",
                "training_file_id": "file-1",
                "config": config,
                "fine_tuned_model": "ft:tiny:tunery::x",
                "attempt": 0,
                "trained_steps": 0,
                "priority": 0,
                "crashes": 0,
                "interruptions": 0,
            }
            for _ in range(min(_BATCH, count - first))
        ]
        with database.writing() as session:
            session.execute(insert(Job), rows)


def claim_all(url: str, number: int, barrier: "multiprocessing.Barrier") -> dict[str, float]:  # pyright: ignore[reportInvalidTypeForm]
    """Until the queue is empty. How many, how often the database was busy, the slowest claim."""
    database = Database(url)
    worker = f"worker-{number}"
    claims = busy = 0
    slowest_s = 0.0
    barrier.wait(60)
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        try:
            with database.writing() as session:
                leases = LeaseRepository(session)
                lease = leases.claim(worker, now=utc_now(), lease_for=timedelta(minutes=1))
                if lease is not None:
                    leases.finish(lease, JobStatus.CANCELLED, now=utc_now())
        except DatabaseBusyError:
            busy += 1
            continue
        slowest_s = max(slowest_s, time.monotonic() - asked)
        if lease is None:
            break
        claims += 1
    took_s = time.monotonic() - began
    database.dispose()
    return {"claims": claims, "busy": busy, "slowest_s": slowest_s, "took_s": took_s}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=60_000)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--ended", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args(arguments)
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        new_database(options.database, Path(directory)) as url,
        spawn.Manager() as manager,
        spawn.Pool(options.processes) as pool,
    ):
        database = Database(url)
        upgrade(database)
        fill(database, options.ended, JobStatus.CANCELLED)
        fill(database, options.jobs, JobStatus.QUEUED)
        barrier = manager.Barrier(options.processes)
        work = [(url, number, barrier) for number in range(options.processes)]
        found = pool.starmap(claim_all, work)
        with database.reading() as session:
            attempts = Counter(session.scalars(select(Attempt.job_id)))
            claimed = session.scalars(select(func.count()).where(Job.attempt == 1)).one()
        twice = sum(1 for count in attempts.values() if count != 1)
        database.dispose()
    busy = sum(one["busy"] for one in found)
    took_s = max(one["took_s"] for one in found)
    report = {
        "database": options.database,
        "jobs": options.jobs,
        "ended jobs beside them": options.ended,
        "claimed once": claimed,
        "claimed twice": twice,
        "busy": busy,
        "claims a second": round(options.jobs / took_s),
        "slowest claim (s)": round(max(one["slowest_s"] for one in found), 2),
    }
    print(json.dumps(report, indent=2))  # noqa: T201 - its report
    return 0 if (claimed, twice, busy) == (options.jobs, 0, 0) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
