"""Every query on saved states, from which the next attempt at a job, or a rerun, resumes."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Delete, Select, and_, case, delete, func, or_, select

from app.core.db.base import ProjectRepository, Repository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.session import Session
from app.core.db.tables import Job, SavedState
from app.core.job.status import JobStatus

KEPT = 2
"""Number of states kept for a job: the newest, and one more in case the newest is unreadable."""

PASSING_CODES = frozenset(
    {
        "base_model_refused",
        "data_check_crashed",
        "gpu_unavailable",
        "internal_error",
        "interrupted_too_often",
        "max_duration_exceeded",
        "model_not_available",
        "not_enough_memory",
        "out_of_memory",
        "training_crashed",
        "training_protocol_violated",
    }
)
"""Codes of failed jobs that may succeed later: the machine or a limit was the cause."""


def may_be_continued(job: Job) -> bool:
    """Whether the way the job ended allows a rerun to resume from its saved state."""
    code = job.error["code"] if job.error else None
    return job.status is JobStatus.CANCELLED or code in PASSING_CODES


class SavedStateRepository(ProjectRepository):
    """The saved states of one project."""

    def add(
        self, lease: Lease, step: int, files: dict[str, dict[str, Any]], *, now: datetime
    ) -> list[str]:
        """Add a state, whose files are stored and verified. It counts as progress of the job.

        Args:
            files: `key`, `bytes` and `sha256` of each file, by name.

        Returns:
            Keys of blobs that are not needed any more, to free after the transaction.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        job = LeaseRepository(self._session).hold(lease)
        job.crashes = job.interruptions = 0
        # An earlier attempt may have saved later states, which this one could not read.
        replaced = self.delete(lease.job_id, SavedState.step >= step)
        state = SavedState(
            job_id=lease.job_id, step=step, attempt=lease.attempt, created_at=now, files=files
        )
        self._add(state)
        newest = [state.step for state in self.list_newest(lease.job_id)[:KEPT]]
        return replaced + self.delete(lease.job_id, SavedState.step.not_in(newest))

    def drop(self, lease: Lease, step: int) -> list[str]:
        """Delete the state of one step. Returns the keys of the blobs to free afterwards.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        LeaseRepository(self._session).hold(lease)
        return self.delete(lease.job_id, SavedState.step == step)

    def list_newest(self, job_id: str) -> list[SavedState]:
        """Return the states of a job, newest first."""
        return list(self._session.scalars(self._newest_first(job_id)))

    def newest_step(self, job_id: str) -> int:
        """Return the step of the newest state; 0 if there is none."""
        query = self._select(SavedState).where(SavedState.job_id == job_id)
        newest = func.max(SavedState.step)
        return self._session.scalar(query.with_only_columns(newest)) or 0

    def list_to_continue(self, job_id: str) -> list[SavedState]:
        """Return the states, newest first, locked until the end of this transaction."""
        return list(self._session.scalars(self._newest_first(job_id).with_for_update()))

    def move(self, from_job_id: str, to_job_id: str) -> None:
        """Give the states of one job to another, with their blobs, which keep their keys."""
        self._session.execute(
            self._update(SavedState)
            .where(SavedState.job_id == from_job_id)
            .values(job_id=to_job_id, saved_by=func.coalesce(SavedState.saved_by, from_job_id)),
            execution_options={"synchronize_session": False},
        )

    def delete(self, job_id: str, *which: ColumnElement[bool]) -> list[str]:
        """Delete the states of a job that match. Returns the keys of the blobs to free."""
        deletion = self._delete(SavedState).where(SavedState.job_id == job_id, *which)
        return _free(self._session, deletion)

    def _newest_first(self, job_id: str) -> Select[SavedState]:
        query = self._select(SavedState).where(SavedState.job_id == job_id)
        return query.order_by(SavedState.step.desc())


class UnneededStates(Repository):
    """The saved states of every project that no job resumes from."""

    def delete(self, *, held_since: datetime, limit: int) -> list[str]:
        """Delete them. Returns the keys of the blobs to free afterwards.

        Args:
            held_since: states of jobs that ended later are kept if `may_be_continued`.
            limit: maximum number of jobs to clean up.
        """
        may_pass = Job.error["code"].as_string().in_(PASSING_CODES)
        is_held = and_(
            Job.finished_at > held_since, or_(Job.status == JobStatus.CANCELLED, may_pass)
        )
        is_needed = case((Job.finished_at.is_(None), 1), (is_held, 1), else_=0)
        # A scalar subquery, not a join: SQLite would begin a join with all jobs that have ended.
        needed = select(is_needed).where(Job.id == SavedState.job_id).scalar_subquery()
        ended = select(SavedState.job_id).where(needed == 0).distinct().limit(limit)
        keys: list[str] = []
        for job_id in self._session.scalars(ended).all():
            keys += _free(self._session, delete(SavedState).where(SavedState.job_id == job_id))
        return keys


def _free(session: Session, deletion: Delete) -> list[str]:
    """Delete states. Returns the keys of their blobs."""
    files = session.scalars(deletion.returning(SavedState.files)).all()
    return [file["key"] for state in files for file in state.values()]
