"""What `tests.chaos.history` leaves out: results, blobs without a row, and processes left over."""

from contextlib import suppress
from pathlib import Path
from unittest import mock

from sqlalchemy import func, select

from app.core import orphans
from app.core.db.blob_keys import BlobKeyRepository
from app.core.db.session import Database
from app.core.db.tables import Event, File, Job
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore


def check_results(database: Database) -> list[str]:
    """What `check_history` leaves out: how often a result was published, and where steps ran."""
    wrong: list[str] = []
    with database.reading() as session:
        results = File.purpose == "fine-tune-results"
        for_jobs = select(File.job_id, func.count()).where(results, File.checkpoint_id.is_(None))
        for job_id, count in session.execute(for_jobs.group_by(File.job_id)):
            if count != 1:
                wrong.append(f"{job_id}: {count} results")
        failed = session.scalars(select(Job).where(Job.status != JobStatus.SUCCEEDED)).all()
        wrong += [f"{job.id}: its cause: {job.error}" for job in failed]
        last = select(Attempt.job_id, func.max(Attempt.attempt)).group_by(Attempt.job_id)
        numbers = dict(session.execute(last).all())
        counts = select(Attempt.job_id, func.count()).group_by(Attempt.job_id)
        for job_id, count in session.execute(counts):
            if count != numbers[job_id]:
                wrong.append(f"{job_id}: {count} attempts, and the last is {numbers[job_id]}")
    return wrong


def check_store(database: Database, store: BlobStore, settings: Settings) -> list[str]:
    """Collect orphans as if they were old; then every blob must have a row."""
    with mock.patch.object(orphans, "GRACE_S", -1e9):
        orphans.free_orphans(database, store, settings)
    keys = [blob.key for blob in store.list_all()]
    with database.reading() as session:
        named = BlobKeyRepository(session).find_named(keys)
    wrong = [f"{key}: a blob without a row" for key in keys if key not in named]
    return wrong + ([] if keys else ["the store is empty"])


def count_attempts(database: Database) -> dict[str, int]:
    with database.reading() as session:
        outcomes = select(Attempt.outcome, func.count()).group_by(Attempt.outcome)
        by_outcome = {str(name): count for name, count in session.execute(outcomes)}
        away = Event.message.startswith("The blob store does not answer")
        given_back = session.scalar(select(func.count()).where(away)) or 0
    counts = {f"attempts {name}": count for name, count in sorted(by_outcome.items())}
    return {"attempts": sum(by_outcome.values()), **counts, "given back to the queue": given_back}


def find_processes(directory: Path) -> list[int]:
    """Processes that run in the directory, or name it."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes() + bytes((process / "cwd").readlink())
            is_ours = "/worker-" in words.decode("utf-8", "replace")
            if is_ours and str(directory) in words.decode("utf-8", "replace"):
                found.append(int(process.name))
    return found
