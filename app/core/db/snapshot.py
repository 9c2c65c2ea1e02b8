"""Takes snapshots of the database, and prepares a restored one for use."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, text, update

from app.core.db.check_tables import DataCheck, Task
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.job.scores.report import REPORT
from app.core.job.status import JobStatus
from app.core.machine.durable import sync

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@contextmanager
def open_snapshot(database: Database) -> Generator[Session]:
    """A session that sees one moment, however many statements it takes. Others may write."""
    with database.reading() as session:
        database.backend.hold_snapshot(session)
        session.execute(text("SELECT count(*) FROM alembic_version"))  # the moment is now
        yield session


def copy_database(database: Database, session: Session, target: Path) -> None:
    """Write what a snapshot sees into the file `target`, durably.

    Raises:
        SnapshotError: it could not be copied.
    """
    database.backend.copy_to(target, session)
    sync(target)


def release_running(session: Session, *, now: datetime) -> list[str]:
    """Put every running job back at once: a restored database has no workers. Returns job ids.

    Checks of data and reports begin again as well. Exports are deleted, and the store has no base
    models any more: a backup does not have their files.
    """
    WorkerRepository(session).remove_all()
    checks = update(DataCheck).where(DataCheck.worker_id.is_not(None))
    session.execute(checks.values(worker_id=None, lease_expires_at=None))
    session.execute(delete(Task).where(Task.kind != REPORT))
    reports = update(Task).where(Task.worker_id.is_not(None))
    session.execute(reports.values(status="queued", worker_id=None, lease_expires_at=None))
    StoredModels(session).remove_all()
    running = update(Job).where(Job.status == JobStatus.RUNNING)
    session.execute(running.values(lease_expires_at=_LONG_AGO))
    return [job.job_id for job in RecoveryRepository(session).rescue_expired(now=now)]
