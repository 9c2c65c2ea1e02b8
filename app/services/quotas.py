"""Limits of a project, checked in the transaction that would exceed them.

A limit that is not set costs one look at the project. Where one is set, `lock_limits` makes the
requests of the project that would use it up take turns, so that two cannot both pass.
"""

from datetime import datetime

from app.core.access import Caller
from app.core.clock import SECONDS_AN_HOUR
from app.core.db.repositories.projects.access import ProjectsRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Session
from app.core.errors import QuotaExceededError

_FREE_SOME_BYTES = (
    "Delete files, jobs or tuned models that you no longer need, or ask the operator of this "
    "service for a higher limit."
)


def require_bytes(session: Session, caller: Caller, more_bytes: int) -> None:
    """Reject so many more bytes if the project may not store them.

    Raises:
        QuotaExceededError: the project would store more than it may.
    """
    usage = UsageRepository(session, caller.project_id)
    limit = ProjectsRepository(session).get(caller.project_id).max_stored_bytes
    if limit is None:
        return
    usage.lock_limits()
    stored = usage.stored_bytes()
    if stored + more_bytes > limit:
        raise QuotaExceededError(
            f"The project stores {stored:,} bytes and may store {limit:,}, so there is no room for "
            f"{more_bytes:,} more. {_FREE_SOME_BYTES}"
        )


def require_job(session: Session, caller: Caller, *, jobs: int = 1, now: datetime) -> None:
    """Reject a new job, or all jobs of a sweep, if the project may not have so many more.

    Raises:
        QuotaExceededError: as many jobs wait as may wait, or the processor hours of this month or
            the bytes of the project are used up.
    """
    usage = UsageRepository(session, caller.project_id)
    project = ProjectsRepository(session).get(caller.project_id)
    limits = (project.max_queued_jobs, project.max_processor_hours, project.max_stored_bytes)
    if limits == (None, None, None):
        return
    usage.lock_limits()
    if project.max_queued_jobs is not None:
        _require_place(usage, project.max_queued_jobs, jobs)
    if project.max_processor_hours is not None:
        _require_time(usage, project.max_processor_hours, now=now)
    if project.max_stored_bytes is not None:
        _require_some_bytes(usage, project.max_stored_bytes)


def _require_place(usage: UsageRepository, limit: int, jobs: int) -> None:
    waiting = usage.count_waiting_jobs(limit)
    if waiting + jobs <= limit:
        return
    if jobs == 1:
        raise QuotaExceededError(
            f"The project already has {limit:,} jobs that are validating_files, queued or paused, "
            "the most that it may have. Wait until one of them starts, or cancel one."
        )
    raise QuotaExceededError(
        f"The sweep has {jobs} jobs. The project may have {limit:,} that are validating_files, "
        f"queued or paused, and has {waiting:,}, so none was created. Make the sweep smaller, wait "
        "until jobs start, or cancel some."
    )


def _require_some_bytes(usage: UsageRepository, limit: int) -> None:
    stored = usage.stored_bytes()
    if stored >= limit:
        raise QuotaExceededError(
            f"The project stores {stored:,} bytes and may store {limit:,}, and a job stores its "
            f"adapter. {_FREE_SOME_BYTES}"
        )


def _require_time(usage: UsageRepository, limit_hours: float, *, now: datetime) -> None:
    used_hours = usage.processor_s(now=now) / SECONDS_AN_HOUR
    if used_hours >= limit_hours:
        raise QuotaExceededError(
            f"The project has used {used_hours:,.2f} of its {limit_hours:,g} processor hours of "
            "this month. Create the job next month, or ask the operator of this service for a "
            "higher limit."
        )
