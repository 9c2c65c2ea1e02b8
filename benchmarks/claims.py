"""What fair turns cost: claims from a queue of three projects, and from one without turns.

python benchmarks/api.py claims
"""

import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, text, update

from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.migrate import upgrade
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from benchmarks.support.databases import new_database

PROJECTS = {"proj-a": 1000, "proj-b": 100, "proj-c": 1}
"""Queued jobs by project."""
MINUTE = timedelta(minutes=1)


def fill(database: Database) -> None:
    now, config = utc_now(), TrainingConfig(seed=7).model_dump(mode="json")
    with database.writing() as session:
        for project_id, jobs in PROJECTS.items():
            session.add(Project(id=project_id, name=project_id, created_at=now))
            session.flush()
            for _ in range(jobs):
                job_id = new_id(IdPrefix.JOB)
                session.add(
                    Job(
                        id=job_id,
                        project_id=project_id,
                        status=JobStatus.QUEUED,
                        created_at=now,
                        base_model="tiny",
                        training_file_id="file-1",
                        config=config,
                        fine_tuned_model=f"ft:{job_id}",
                    )
                )


def claim_in_turn(session: Session) -> None:
    assert LeaseRepository(session).claim("worker-1", now=utc_now(), lease_for=MINUTE)


def claim_in_order(session: Session) -> None:
    """The claim of Tunery 0.12, which knew no turns."""
    now = utc_now()
    next_queued = (
        select(Job.id)
        .where(Job.status == JobStatus.QUEUED)
        .order_by(Job.priority.desc(), Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    job = session.scalars(
        update(Job)
        .where(Job.id == next_queued)
        .values(
            status=JobStatus.RUNNING,
            attempt=Job.attempt + 1,
            worker_id="worker-1",
            started_at=func.coalesce(Job.started_at, now),
            lease_expires_at=now + MINUTE,
            tokens_per_second=None,
        )
        .returning(Job)
    ).one()
    session.add(Attempt(job_id=job.id, attempt=job.attempt, worker_id="worker-1", started_at=now))
    TrainingConfig.model_validate(job.config)


def end_running(session: Session) -> None:
    """A machine has few running jobs, so their number must not grow."""
    running = update(Job).where(Job.status == JobStatus.RUNNING)
    ended = {"status": JobStatus.CANCELLED, "finished_at": utc_now(), "lease_expires_at": None}
    session.execute(running.values(ended))


def measure(kind: str, *, claims: int) -> float:
    """Print the median times of both claims, made in turn. Returns their ratio."""
    claim_by = {
        "in turn": claim_in_turn,
        "in order": claim_in_order,
    }
    with (
        tempfile.TemporaryDirectory(dir=".") as first,
        tempfile.TemporaryDirectory(dir=".") as second,
        new_database(kind, Path(first)) as first_url,
        new_database(kind, Path(second)) as second_url,
    ):
        databases = {
            name: Database(url) for name, url in zip(claim_by, (first_url, second_url), strict=True)
        }
        for database in databases.values():
            upgrade(database)
            fill(database)
        with databases["in order"].engine.begin() as connection:
            connection.execute(text("DROP INDEX ix_jobs_queue"))
            connection.execute(
                text("CREATE INDEX ix_jobs_queue ON jobs (status, priority DESC, id)")
            )
        took_s: dict[str, list[float]] = {name: [] for name in claim_by}
        for _ in range(claims):
            for name, claim in claim_by.items():
                began_s = time.perf_counter()
                databases[name].transact(claim)
                took_s[name].append(time.perf_counter() - began_s)
                databases[name].transact(end_running)
        for database in databases.values():
            database.dispose()
    medians = {name: statistics.median(values[10:]) for name, values in took_s.items()}
    ratio = medians["in order"] / medians["in turn"]
    for name, seconds in medians.items():
        print(f"{kind}: {1 / seconds:7.0f} claims/s {name}")
    print(f"{kind}: throughput {ratio:.3f} times that without turns")
    return ratio
