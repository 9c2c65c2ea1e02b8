"""The jobs of a sweep have their data checked once, whatever becomes of any of them."""

from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.data_checks import MAX_CRASHES, DataCheckRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease
from app.core.db.repositories.sweeps.shared_checks import EndedChecks, find_tokens
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.errors import LeaseLostError
from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import JobError
from app.core.job.estimate import Estimate
from app.core.job.status import JobStatus
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    add_worker,
    build_data_report,
    build_file,
    claim_check,
    get_job,
    list_messages,
)

FILES = {"tokens.json": {"key": "jobs/a/tokens.json", "bytes": 1, "sha256": "a"}}
KEYS = ["jobs/a/tokens.json"]
LATER = NOW + 2 * MINUTE


def add(database: Database, many: int, **changes: Any) -> list[Job]:
    """Jobs that share a check."""
    file = build_file()
    with database.writing() as session:
        session.add(file)
    status = JobStatus.VALIDATING_FILES
    changes = {"status": status, "training_file_id": file.id, "shared": "s"} | changes
    return [add_job(database, **changes) for _ in range(many)]


def claim(database: Database, **options: Any) -> Lease:
    lease = claim_check(database, **options)
    assert lease is not None
    return lease


def finish(database: Database, lease: Lease, **options: Any) -> None:
    report = build_data_report().model_dump(mode="json")
    files = None if "error" in options else FILES
    with database.writing() as session:
        DataCheckRepository(session).finish(lease, report, files, now=NOW, **options)


def cancel(database: Database, job: Job) -> None:
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=NOW)


def statuses(database: Database, jobs: list[Job]) -> list[str]:
    return [get_job(database, job.id).status for job in jobs]


def estimate(*, steps: int = 1, needed_bytes: int = 1) -> Estimate:
    return Estimate(
        steps=steps,
        examples=1,
        tokens_per_epoch=1,
        tokens=1,
        learned_tokens=1,
        duration=None,
        peak_memory_bytes=needed_bytes,
        least_memory_bytes=needed_bytes,
        disk_bytes=1,
        compute=ComputeSettings(),
    )


def end(database: Database, job: Job) -> None:
    with database.writing() as session:
        row = session.get_one(Job, job.id)
        row.status, row.finished_at = JobStatus.CANCELLED, NOW


def forget(database: Database) -> list[str]:
    with database.writing() as session:
        return EndedChecks(session).forget_tokens(limit=9)


def tokens_of(database: Database, job: Job) -> list[str]:
    with database.reading() as session:
        return [file["key"] for file in find_tokens(session, job.id).values()]


def test_one_check_moves_all_jobs_on(database: Database) -> None:
    first, paused, last = jobs = add(database, 3)
    (alone,) = add(database, 1, shared=None)
    (other,) = add(database, 1, shared="other")
    with database.writing() as session:
        session.get_one(Job, paused.id).pause_requested_at = NOW

    lease = claim(database)
    others = [claim(database, worker_id=f"worker-{n}").job_id for n in (2, 3)]
    assert claim_check(database, worker_id="worker-4") is None, "the other two wait for the first"
    finish(database, lease)

    assert lease.job_id == first.id
    assert others == [alone.id, other.id]
    assert statuses(database, jobs) == ["queued", "paused", "queued"]
    assert list_messages(database, last.id)[-1] == (
        f"Files validated with {first.id}, moving job to queued state"
    )
    with database.reading() as session:
        reports = [session.get_one(DataCheck, job.id).report for job in jobs]
        held = [session.get_one(DataCheck, job.id).files for job in jobs]
    assert all(report == reports[0] for report in reports)
    assert held == [FILES, None, None]
    assert [tokens_of(database, job) for job in (*jobs, alone)] == [KEYS, KEYS, KEYS, []]


def test_each_job_has_its_own_estimate_and_fails_alone_if_it_does_not_fit(
    database: Database,
) -> None:
    _, second, large, unknown = jobs = add(database, 4)
    add_worker(database, memory_bytes=4 * 10**9)
    others = {
        second.id: estimate(steps=2),
        large.id: estimate(steps=3, needed_bytes=6 * 10**9),
        "ftjob-none": estimate(),
    }

    finish(database, claim(database), estimate=estimate(), others=others)

    with database.reading() as session:
        shown = [session.get_one(DataCheck, job.id).report or {} for job in jobs[1:]]
    steps = [report["estimate"] and report["estimate"]["steps"] for report in shown]
    assert steps == [2, 3, None]
    assert statuses(database, jobs) == ["queued", "queued", "failed", "queued"]
    assert (get_job(database, large.id).error or {})["code"] == "not_enough_memory"
    assert get_job(database, unknown.id).needed_memory_bytes is None


def test_bad_data_fails_all_with_the_same_reason(database: Database) -> None:
    jobs = add(database, 3)
    error = JobError(code="row_too_long", message="Line 3 is too long.", param="training_file")

    finish(database, claim(database), error=error)

    assert statuses(database, jobs) == ["failed"] * 3
    assert len({str(get_job(database, job.id).error) for job in jobs}) == 1


def test_a_process_that_keeps_dying_fails_all(database: Database) -> None:
    jobs = add(database, 3)

    for _ in range(MAX_CRASHES):
        lease = claim(database)
        with database.writing() as session:
            DataCheckRepository(session).crash(lease, "It died of SIGSEGV", now=NOW)

    assert statuses(database, jobs) == ["failed"] * 3
    assert claim_check(database) is None


@pytest.mark.parametrize("is_checked", [True, False])
def test_the_next_job_is_checked_if_the_first_is_cancelled(
    database: Database,
    is_checked: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    first, *rest = add(database, 3)
    lost = claim(database) if is_checked else None

    cancel(database, first)
    if lost is not None:
        with pytest.raises(LeaseLostError):
            finish(database, lost)
    lease = claim(database)
    finish(database, lease)

    assert lease.job_id == rest[0].id
    assert statuses(database, rest) == ["queued", "queued"]
    assert [tokens_of(database, job) for job in rest] == [KEYS, KEYS]


def test_a_check_of_a_killed_worker_is_claimed_again_for_all(database: Database) -> None:
    jobs = add(database, 2)
    old = claim(database)

    new = claim(database, worker_id="worker-2", now=LATER)

    assert (new.job_id, new.attempt) == (old.job_id, 2)
    with pytest.raises(LeaseLostError):
        finish(database, old)
    assert statuses(database, jobs) == ["validating_files"] * 2
    finish(database, new)
    assert statuses(database, jobs) == ["queued"] * 2


def test_a_job_that_was_cancelled_meanwhile_stays_so(database: Database) -> None:
    _, second, _ = jobs = add(database, 3)
    lease = claim(database)
    cancel(database, second)

    finish(database, lease)

    assert statuses(database, jobs) == ["queued", "cancelled", "queued"]


def test_the_tokens_are_kept_until_the_last_job_has_ended(database: Database) -> None:
    first, second = add(database, 2)
    finish(database, claim(database))

    end(database, first)
    assert forget(database) == []
    assert tokens_of(database, second) == KEYS
    end(database, second)
    assert forget(database) == KEYS
    assert tokens_of(database, second) == []


def test_a_deleted_job_leaves_the_tokens_to_the_others(database: Database) -> None:
    first, second = add(database, 2)
    finish(database, claim(database))
    end(database, first)

    with database.writing() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        assert jobs.delete(jobs.get(first.id)) == []
    assert tokens_of(database, second) == KEYS
    end(database, second)
    with database.writing() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        assert jobs.delete(jobs.get(second.id)) == KEYS
