"""What the maintenance of a service asks of its database; nothing here changes it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import DatabaseError, OperationalError

from app.core.db.blob_keys import PAGE_ROWS, NamedBlob, iterate_states
from app.core.db.session import Database, Session
from app.core.db.tables import Checkpoint, File, Job
from app.core.job.status import JobStatus
from app.core.manifest import MANIFEST_NAME

_MIGRATIONS = Path(__file__).parents[3] / "migrations"
_MAX_PROBLEMS = 20


class NoDatabaseError(Exception):
    """There is no database; the message says where it was looked for."""


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


def find_unfinished_job_on(session: Session, base_model: str) -> str | None:
    """The id of a job of any project that has yet to train on this base model, or None."""
    unfinished = [status for status in JobStatus if not status.is_terminal]
    return session.scalar(
        select(Job.id).where(Job.base_model == base_model, Job.status.in_(unfinished)).limit(1)
    )


def kind_of(database_url: str) -> str:
    """`sqlite` or `postgresql`."""
    return make_url(database_url).get_backend_name()


def require_database(database: Database) -> None:
    """Make sure that there is one, and make none.

    Raises:
        NoDatabaseError: its file does not exist, or its server does not answer.
    """
    file = sqlite_file(database)
    if file is None:
        try:
            with database.reading() as session:
                describe_engine(session)
        except Exception as error:
            raise NoDatabaseError(f"The database cannot be reached: {error}") from error
    elif not file.exists():
        raise NoDatabaseError(
            f"There is no database at {file}. Are TUNERY_DATA_DIR and TUNERY_DATABASE_URL those of "
            "the service, and was it ever started?"
        )


def find_damage(session: Session) -> list[str]:
    """What SQLite finds wrong with its own file, and rows that name others which are not there.

    PostgreSQL checks itself; there is no such question to ask of it.
    """
    if session.get_bind().dialect.name != "sqlite":
        return []
    try:
        return _find_damage_in_file(session)
    except OperationalError:  # such as a busy database
        raise
    except DatabaseError as error:  # too much of it to look any further
        return [str(error.orig)]


def _find_damage_in_file(session: Session) -> list[str]:
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


@dataclass(frozen=True, slots=True)
class ManifestedFiles:
    """A checkpoint or a saved state: files that are what their manifest says, or worth nothing."""

    owner: str
    """For people."""
    manifest_sha256: str
    blobs: Mapping[str, NamedBlob]
    """By the name of the file; the manifest is among them."""


def iterate_manifested(
    open_session: Callable[[], AbstractContextManager[Session]],
) -> Iterator[ManifestedFiles]:
    """Every checkpoint that still has its files, then every saved state, page by page."""
    last_id = ""
    while True:
        query = select(Checkpoint).where(Checkpoint.id > last_id).order_by(Checkpoint.id)
        with open_session() as session:
            page = session.scalars(query.limit(PAGE_ROWS)).all()
        if not page:
            break
        yield from (_of_checkpoint(checkpoint) for checkpoint in page if checkpoint.files)
        last_id = page[-1].id
    for state in iterate_states(open_session):
        manifest = state.blobs.get(MANIFEST_NAME)
        yield ManifestedFiles(
            f"the state of {state.job_id} saved at step {state.step}",
            manifest.sha256 if manifest else "",
            state.blobs,
        )


def _of_checkpoint(checkpoint: Checkpoint) -> ManifestedFiles:
    return ManifestedFiles(
        f"{checkpoint.id} (step {checkpoint.step} of {checkpoint.job_id})",
        checkpoint.manifest_sha256,
        {
            file.filename: NamedBlob(file.blob_key, file.bytes, file.sha256, file_id=file.id)
            for file in checkpoint.files
        },
    )


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
