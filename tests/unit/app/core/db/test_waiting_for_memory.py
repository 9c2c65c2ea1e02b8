"""Jobs that do not fit into the memory that is free, or into that of a worker."""

from datetime import datetime

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import MEMORY_PAUSE, RecoveryRepository
from app.core.db.session import Database
from app.core.job.child.job_spec import ComputeSettings, DeviceName
from app.core.job.child.training_events import MemoryShort
from app.core.job.estimate import Estimate
from app.core.job.status import JobStatus
from app.core.machine.memory import Memory
from tests.builders import (
    MINUTE,
    NOW,
    add_job,
    add_worker,
    build_file,
    build_metrics,
    claim,
    claim_check,
    get_job,
    list_messages,
)

GB = 10**9
LARGE = Memory(total=16 * GB, free=16 * GB)
BUSY = Memory(total=16 * GB, free=3 * GB)
SMALL = Memory(total=4 * GB, free=4 * GB)


def fall_short(
    database: Database,
    lease: Lease,
    *,
    needed_bytes: int = 6 * GB,
    total_bytes: int = 16 * GB,
    device: DeviceName = "cpu",
) -> None:
    short = MemoryShort(
        message="The job needs about 6.0 GB of memory.",
        device=device,
        needed_bytes=needed_bytes,
        total_bytes=total_bytes,
    )
    with database.writing() as session:
        RecoveryRepository(session).wait_for_memory(lease, short, now=NOW)


def claim_with(database: Database, memory: Memory, *, now: datetime = NOW) -> str | None:
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=now, lease_for=MINUTE, memory=memory)
        return lease and lease.job_id


def test_a_job_waits_until_enough_memory_is_free(database: Database) -> None:
    job = add_job(database)
    fall_short(database, claim(database))

    waiting = get_job(database, job.id)
    assert (waiting.status, waiting.interruptions, waiting.crashes) == (JobStatus.QUEUED, 0, 0)
    assert waiting.waiting_reason == "The job needs about 6.0 GB of memory."
    assert claim_with(database, BUSY) is None
    assert claim_with(database, LARGE) == job.id


def test_a_job_that_waits_keeps_no_other_from_running(database: Database) -> None:
    large = add_job(database, priority=5)
    fall_short(database, claim(database))
    small = add_job(database)

    assert claim_with(database, BUSY) == small.id
    assert claim_with(database, LARGE) == large.id


def test_it_is_tried_now_and_then_even_if_too_little_seems_to_be_free(database: Database) -> None:
    job = add_job(database)
    fall_short(database, claim(database))

    assert claim_with(database, BUSY, now=NOW + MEMORY_PAUSE - MINUTE) is None
    assert claim_with(database, BUSY, now=NOW + MEMORY_PAUSE) == job.id


def test_the_wait_is_told_once(database: Database) -> None:
    job = add_job(database)

    for _ in range(3):
        fall_short(database, claim(database, now=NOW + MEMORY_PAUSE))

    told = [message for message in list_messages(database, job.id) if "memory" in message]
    assert told == [
        "Too little memory is free; the job is queued again and will start from its first step. "
        + get_job(database, job.id).waiting_reason
    ]


def test_the_wait_is_over_once_the_job_takes_steps(database: Database) -> None:
    job = add_job(database)
    fall_short(database, claim(database))
    lease = claim(database)
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, [build_metrics()], tokens_per_second=None, estimated_finish_at=None
        )

    running = get_job(database, job.id)
    assert (running.waiting_reason, running.not_before) == (None, None)


def test_a_job_too_large_for_its_worker_waits_for_a_larger_one(database: Database) -> None:
    add_worker(database, "worker-2", memory_bytes=LARGE.total)
    job = add_job(database)
    fall_short(database, claim(database), total_bytes=SMALL.total)

    assert get_job(database, job.id).status is JobStatus.QUEUED
    assert claim_with(database, SMALL, now=NOW + 2 * MEMORY_PAUSE) is None
    assert claim_with(database, LARGE) == job.id


def test_a_job_too_large_for_every_worker_fails(database: Database) -> None:
    add_worker(database, "worker-2", memory_bytes=5 * GB)
    job = add_job(database)
    fall_short(database, claim(database), total_bytes=SMALL.total)

    failed = get_job(database, job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "not_enough_memory"
    assert "about 6.0 GB" in failed.error["message"]


def test_the_memory_of_workers_says_nothing_about_a_gpu(database: Database) -> None:
    add_worker(database, "worker-2", memory_bytes=LARGE.total)
    too_large, waiting = add_job(database, priority=1), add_job(database)
    fall_short(database, claim(database), total_bytes=4 * GB, device="cuda")
    fall_short(database, claim(database), total_bytes=8 * GB, device="cuda")

    assert get_job(database, too_large.id).status is JobStatus.FAILED
    assert get_job(database, waiting.id).status is JobStatus.QUEUED
    assert claim_with(database, LARGE) is None
    assert claim_with(database, SMALL, now=NOW + MEMORY_PAUSE) == waiting.id


def check_data(database: Database, *, needed_bytes: int) -> str:
    """A new job whose data was checked, and which is estimated to need so much memory."""
    file = build_file()
    with database.writing() as session:
        FileRepository(session, DEFAULT_PROJECT_ID).add(file)
    job = add_job(database, status=JobStatus.VALIDATING_FILES, training_file_id=file.id)
    lease = claim_check(database)
    assert lease is not None
    assert lease.job_id == job.id
    estimate = Estimate(
        steps=1,
        examples=1,
        tokens_per_epoch=1,
        tokens=1,
        learned_tokens=1,
        duration=None,
        peak_memory_bytes=needed_bytes,
        least_memory_bytes=needed_bytes,
        disk_bytes=1,
        compute=ComputeSettings(),
        advice=("It would fit into 4.0 GB with a context_length of 512.",),
    )
    with database.writing() as session:
        DataCheckRepository(session).finish(lease, {}, estimate=estimate, now=NOW)
    return job.id


def test_a_checked_job_is_refused_if_no_worker_has_memory_for_it(database: Database) -> None:
    add_worker(database, memory_bytes=SMALL.total)

    failed = get_job(database, check_data(database, needed_bytes=6 * GB))

    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "not_enough_memory"
    assert failed.error["message"] == (
        "The job needs at least 6.0 GB of memory, and the largest worker has 4.0 GB. It would fit "
        "into 4.0 GB with a context_length of 512."
    )


def test_a_checked_job_is_taken_by_a_worker_that_has_memory_for_it(database: Database) -> None:
    add_worker(database, memory_bytes=SMALL.total)
    add_worker(database, "worker-2", memory_bytes=LARGE.total)
    job_id = check_data(database, needed_bytes=6 * GB)

    assert get_job(database, job_id).status is JobStatus.QUEUED
    assert claim_with(database, SMALL) is None
    assert claim_with(database, BUSY) == job_id  # it has not been tried yet


def test_a_worker_that_does_not_say_how_much_memory_it_has_refuses_nothing(
    database: Database,
) -> None:
    add_worker(database)

    assert get_job(database, check_data(database, needed_bytes=6 * GB)).status is JobStatus.QUEUED
