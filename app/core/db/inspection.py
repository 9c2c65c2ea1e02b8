"""Questions that maintenance asks the database. Nothing here changes it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, inspect, select

from app.core.db.base import Project
from app.core.db.blob_keys import NamedBlob, blobs_of_state, iterate_rows, iterate_states
from app.core.db.check_tables import Task
from app.core.db.session import Database, Session, backend_of
from app.core.db.tables import Checkpoint, File, Job
from app.core.errors import DatabaseAwayError, OperatorError
from app.core.job.status import JobStatus
from app.core.manifest import MANIFEST_NAME


class NoDatabaseError(OperatorError):
    """There is no database. The message says where it was expected."""


def find_unfinished_job_on(session: Session, base_model: str) -> str | None:
    """Id of an unfinished job of any project that trains on this base model, or None."""
    unfinished = [status for status in JobStatus if not status.is_terminal]
    return session.scalar(
        select(Job.id).where(Job.base_model == base_model, Job.status.in_(unfinished)).limit(1)
    )


def require_database(database: Database) -> None:
    """Make sure that the database exists, without creating it.

    Raises:
        NoDatabaseError: its file does not exist, or its server does not answer.
    """
    file = database.backend.file
    if file is None:
        try:
            with database.reading() as session:
                database.backend.describe(session)
        except DatabaseAwayError as error:
            raise NoDatabaseError(error.for_operator) from error
    elif not file.exists():
        raise NoDatabaseError(
            f"There is no database at {file}. Check that TUNERY_DATA_DIR and TUNERY_DATABASE_URL "
            "are those of the service, and that it has been started before."
        )


def has_tables(database: Database) -> bool:
    """Whether the database exists and was ever used. Does not create it.

    Raises:
        DatabaseBusyError: it does not answer at the moment.
    """
    file = database.backend.file
    if file is not None and not file.exists():
        return False
    with database.service_errors():
        return bool(inspect(database.engine).get_table_names())


@dataclass(frozen=True, slots=True)
class ManifestedFiles:
    """Files of a checkpoint or a saved state. They are valid only as their manifest says."""

    owner: str
    """Name of the checkpoint or the state, for people."""
    manifest_sha256: str
    blobs: Mapping[str, NamedBlob]
    """Blobs by file name, including the manifest."""


def iterate_manifested(
    open_session: Callable[[], AbstractContextManager[Session]],
) -> Iterator[ManifestedFiles]:
    """Every checkpoint that still has its files, then every saved state, page by page."""
    for checkpoint in iterate_rows(open_session, Checkpoint, Checkpoint.id):
        if checkpoint.files:
            yield _of_checkpoint(checkpoint)
    for state in iterate_states(open_session):
        blobs = blobs_of_state(state)
        manifest = blobs.get(MANIFEST_NAME)
        yield ManifestedFiles(
            f"the state of {state.job_id} saved at step {state.step}",
            manifest.sha256 if manifest else "",
            blobs,
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
    """Number of jobs in each status, over all projects."""
    counts = dict.fromkeys(JobStatus, 0)
    for status, count in session.execute(select(Job.status, func.count()).group_by(Job.status)):
        counts[status] = count
    return counts


@dataclass(frozen=True, slots=True)
class ProjectQueue:
    """The jobs of one project that have not ended."""

    project_id: str
    name: str
    jobs: dict[JobStatus, int]
    """Number of jobs by status. Statuses without jobs are absent."""


def count_unfinished_jobs(session: Session) -> list[ProjectQueue]:
    """The unfinished jobs of each project that has some, in the order of the projects' names."""
    unfinished = [status for status in JobStatus if not status.is_terminal]
    counts = (
        select(Job.project_id, Job.status, func.count().label("jobs"))
        .where(Job.status.in_(unfinished))
        .group_by(Job.project_id, Job.status)
        .subquery()
    )
    of_project = Project.id == counts.c.project_id
    rows = session.execute(
        select(Project.id, Project.name, counts.c.status, counts.c.jobs)
        .join(counts, of_project)
        .order_by(Project.name)
    )
    queues: dict[str, ProjectQueue] = {}
    for project_id, name, status, count in rows:
        queue = queues.setdefault(project_id, ProjectQueue(project_id, name, {}))
        queue.jobs[status] = count
    return list(queues.values())


def describe_database(session: Session) -> str:
    """Name and version of the database program, such as `PostgreSQL 17.2`."""
    return backend_of(session).describe(session).text


def find_running(session: Session, ids: Collection[str]) -> set[str]:
    """The jobs and tasks among `ids` that may be running. A job may have its data checked."""
    busy = (JobStatus.VALIDATING_FILES, JobStatus.RUNNING)
    jobs = select(Job.id).where(Job.id.in_(ids), Job.status.in_(busy))
    tasks = select(Task.id).where(Task.id.in_(ids), Task.status == "running")
    return {*session.scalars(jobs), *session.scalars(tasks)}


def count_expired_leases(session: Session, *, now: datetime) -> int:
    """Number of running jobs whose worker did not renew its lease in time."""
    expired = (Job.status == JobStatus.RUNNING, Job.lease_expires_at < now)
    return session.execute(select(func.count()).where(*expired)).scalar_one()


def count_tasks(session: Session) -> dict[tuple[str, str], int]:
    """Number of exports and reports by kind and status, over all projects."""
    counts = select(Task.kind, Task.status, func.count()).group_by(Task.kind, Task.status)
    rows = session.execute(counts.order_by(Task.kind, Task.status)).all()
    return {(kind, status): count for kind, status, count in rows}


def count_expired_tasks(session: Session, *, now: datetime) -> int:
    """Number of exports and reports whose worker did not renew its lease in time."""
    expired = select(func.count()).where(Task.lease_expires_at < now)
    return session.execute(expired).scalar_one()


def count_from_the_future(session: Session, *, now: datetime, tolerance: timedelta) -> int:
    """Number of rows created later than now: the clock was ahead then, or is behind now."""
    return sum(
        session.execute(select(func.count()).where(table.created_at > now + tolerance)).scalar_one()
        for table in (File, Job, Checkpoint)
    )


def count_failures(session: Session) -> dict[str, int]:
    """Number of failed jobs by error code, over all projects."""
    code = Job.error["code"].as_string()
    failed = select(code, func.count()).where(Job.status == JobStatus.FAILED).group_by(code)
    return dict(session.execute(failed).all())


def find_oldest_waiting(session: Session) -> datetime | None:
    """When the oldest job that waits for a worker was created, of all projects; None without one.

    It waits to have its data checked, or to be trained.
    """
    waiting = (JobStatus.VALIDATING_FILES, JobStatus.QUEUED)
    oldest = select(func.min(Job.id)).where(Job.status.in_(waiting)).scalar_subquery()
    return session.scalar(select(Job.created_at).where(Job.id == oldest))


def sum_training_speed(session: Session) -> float:
    """Tokens a second of all running jobs together."""
    speeds = select(func.sum(Job.tokens_per_second)).where(Job.status == JobStatus.RUNNING)
    return session.scalar(speeds) or 0.0
