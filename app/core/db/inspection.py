"""What `python -m app doctor` asks of a database; it changes nothing."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text

from app.core.db.models import Checkpoint, File, Job
from app.core.db.session import Database, Session
from app.core.job_status import JobStatus

_MIGRATIONS = Path(__file__).parents[3] / "migrations"
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Engine:
    """The program that keeps the rows."""

    name: str
    """sqlite or postgresql."""
    version: str
    journal_mode: str | None
    """Of SQLite: wal or, where the version has a bug in that, delete."""


def describe_engine(session: Session) -> Engine:
    name = session.get_bind().dialect.name
    if name == "sqlite":
        version = session.execute(text("SELECT sqlite_version()")).scalar_one()
        return Engine(name, version, session.execute(text("PRAGMA journal_mode")).scalar_one())
    return Engine(name, session.execute(text("SHOW server_version")).scalar_one(), None)


def sqlite_file(database: Database) -> Path | None:
    """Where SQLite keeps this database; None for one on a server."""
    url = database.engine.url
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database)


def find_damage(session: Session) -> list[str]:
    """What SQLite finds wrong with its own file, and rows that name others which are not there.

    PostgreSQL checks itself; there is no such question to ask of it.
    """
    if session.get_bind().dialect.name != "sqlite":
        return []
    damage = session.execute(text(f"PRAGMA integrity_check({_MAX_PROBLEMS})")).scalars().all()
    broken = session.execute(text("PRAGMA foreign_key_check")).fetchmany(_MAX_PROBLEMS)
    return [line for line in damage if line != "ok"] + [
        f"row {row} of {table} names no row of {parent}" for table, row, parent, _ in broken
    ]


def read_revision(session: Session) -> str | None:
    """The newest migration that was applied; None when there was none yet."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def newest_revision() -> str | None:
    """The newest migration that this version of the service has."""
    return _scripts().get_current_head()


def is_known_revision(revision: str) -> bool:
    """False for one of a newer version of the service."""
    return revision in {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return ScriptDirectory.from_config(config)


def count_jobs(session: Session) -> dict[JobStatus, int]:
    """How many jobs there are in each status, of every project."""
    counts = dict.fromkeys(JobStatus, 0)
    for status, count in session.execute(select(Job.status, func.count()).group_by(Job.status)):
        counts[status] = count
    return counts


def find_running(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of `job_ids` that a worker has at this moment."""
    running = select(Job.id).where(Job.id.in_(job_ids), Job.status == JobStatus.RUNNING)
    return set(session.scalars(running))


def count_expired_leases(session: Session, *, now: datetime) -> int:
    """Running jobs whose worker gave no sign of life in time."""
    expired = (Job.status == JobStatus.RUNNING, Job.lease_expires_at < now)
    return session.execute(select(func.count()).where(*expired)).scalar_one()


def count_from_the_future(session: Session, *, now: datetime, tolerance: timedelta) -> int:
    """Rows that were made later than now: the clock was ahead then, or is behind now."""
    return sum(
        session.execute(select(func.count()).where(table.created_at > now + tolerance)).scalar_one()
        for table in (File, Job, Checkpoint)
    )
