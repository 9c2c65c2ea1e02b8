"""Four worker processes and one queue: each job is claimed once, and nobody is told to wait."""

import multiprocessing
from collections import Counter
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.check_tables import DataCheck
from app.core.db.inspection import count_jobs
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.settings import Settings
from tests.builders import add_project, build_file, build_job, claim_check

JOBS = 200
WORKERS = 4
LIMIT = 2


def claim_until_empty(url: str, worker_id: str) -> list[str]:
    database = Database(url)
    claimed: list[str] = []
    while True:
        with database.writing() as session:
            lease = LeaseRepository(session).claim(
                worker_id, now=utc_now(), lease_for=timedelta(minutes=1)
            )
        if lease is None:
            return claimed
        claimed.append(lease.job_id)
        with database.writing() as session:
            LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=utc_now())


def test_every_job_is_claimed_exactly_once(database: Database, settings: Settings) -> None:
    with database.writing() as session:
        jobs = [build_job(created_at=utc_now()) for _ in range(JOBS)]
        for job in jobs:
            JobRepository(session, DEFAULT_PROJECT_ID).add(job)
    database.dispose()

    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        url = settings.resolved_database_url
        claimed = pool.starmap(
            claim_until_empty, [(url, f"worker-{number}") for number in range(WORKERS)]
        )

    assert Counter(job_id for ids in claimed for job_id in ids) == Counter(job.id for job in jobs)
    assert all(ids == sorted(ids) for ids in claimed), "the oldest job comes first"
    with database.reading() as session:
        page = JobRepository(session, DEFAULT_PROJECT_ID).list_page(after=None, limit=JOBS)
        assert {(job.status, job.attempt) for job in page.rows} == {(JobStatus.CANCELLED, 1)}


def check_until_none_waits(url: str, worker_id: str) -> list[str]:
    database = Database(url)
    checked: list[str] = []
    while True:
        with database.reading() as session:
            if not count_jobs(session)[JobStatus.VALIDATING_FILES]:
                return checked
        lease = claim_check(database, worker_id, now=utc_now())
        if lease is not None:
            checked.append(lease.job_id)
            with database.writing() as session:
                DataCheckRepository(session).finish(lease, {}, now=utc_now())


def test_the_data_of_every_job_is_checked_exactly_once(
    database: Database, settings: Settings
) -> None:
    file = build_file()
    changes: dict[str, Any] = {
        "status": JobStatus.VALIDATING_FILES,
        "training_file_id": file.id,
        "created_at": utc_now(),
    }
    with database.writing() as session:
        FileRepository(session, DEFAULT_PROJECT_ID).add(file)
        jobs = [build_job(**changes) for _ in range(JOBS)]
        for job in jobs:
            JobRepository(session, DEFAULT_PROJECT_ID).add(job)
    database.dispose()

    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        url = settings.resolved_database_url
        checked = pool.starmap(
            check_until_none_waits, [(url, f"worker-{number}") for number in range(WORKERS)]
        )

    assert Counter(job_id for ids in checked for job_id in ids) == Counter(job.id for job in jobs)
    with database.reading() as session:
        assert count_jobs(session)[JobStatus.QUEUED] == JOBS
        assert set(session.scalars(select(DataCheck.number))) == {1}


def run_limited(url: str, worker_id: str) -> int:
    """Run jobs until there are none. Returns the most jobs that ran at once, of all workers."""
    database = Database(url)
    most = 0
    while True:
        with database.writing() as session:
            leases = LeaseRepository(session)
            lease = leases.claim(worker_id, now=utc_now(), lease_for=timedelta(minutes=1))
        with database.reading() as session:
            counts = count_jobs(session)
        most = max(most, counts[JobStatus.RUNNING])
        if lease is None and not counts[JobStatus.QUEUED]:
            return most
        if lease is not None:
            with database.writing() as session:
                LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=utc_now())


def test_no_more_jobs_of_a_project_run_at_once_than_may(
    database: Database, settings: Settings
) -> None:
    add_project(database, "proj-small", max_running_jobs=LIMIT)
    with database.writing() as session:
        for _ in range(JOBS // 2):
            JobRepository(session, "proj-small").add(build_job(created_at=utc_now()))
    database.dispose()

    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        url = settings.resolved_database_url
        most = pool.starmap(run_limited, [(url, f"worker-{number}") for number in range(WORKERS)])

    assert max(most) == LIMIT
