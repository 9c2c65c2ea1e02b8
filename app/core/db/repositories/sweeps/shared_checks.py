"""What the jobs of a sweep share: one check of their data, and its tokens.

Jobs share a check if their rows have the same value in `DataCheck.shared`. The oldest of them that
still waits has the check; its result is that of all. So no job depends on another one: if the
oldest is cancelled, the next is the oldest. One row of them has the tokens, until the last of these
jobs has ended.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import aliased

from app.core.db.base import Repository
from app.core.db.check_tables import DataCheck
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.job.status import JobStatus

_OTHER, _OTHER_JOB = aliased(DataCheck), aliased(Job)


def _is_shared_by_none(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether no other job that matches shares the check of a query.

    With `NOT EXISTS` instead, PostgreSQL would join, and read the whole table of jobs.
    """
    others = select(_OTHER.job_id).join(_OTHER_JOB, _OTHER_JOB.id == _OTHER.job_id)
    is_other = (_OTHER.shared == DataCheck.shared, _OTHER.job_id != DataCheck.job_id)
    one = others.where(*is_other, *which).limit(1)
    return one.correlate(DataCheck).scalar_subquery().is_(None)


IS_FIRST = _is_shared_by_none(
    _OTHER.job_id < DataCheck.job_id, _OTHER_JOB.status == JobStatus.VALIDATING_FILES
)
"""Whether no older job waits for the same check."""
_IS_LAST = _is_shared_by_none(_OTHER_JOB.finished_at.is_(None))
"""Whether every other job that shares the tokens has ended."""


def list_sharers(session: Session, job_id: str, *, for_update: bool = False) -> Sequence[Job]:
    """The other jobs that wait for the check of a job, oldest first."""
    shared = select(DataCheck.shared).where(DataCheck.job_id == job_id).scalar_subquery()
    jobs = select(Job).join(DataCheck, DataCheck.job_id == Job.id)
    is_other = (DataCheck.shared == shared, Job.id != job_id)
    waiting = jobs.where(*is_other, Job.status == JobStatus.VALIDATING_FILES).order_by(Job.id)
    if for_update:
        waiting = waiting.with_for_update(key_share=True, of=Job)
    return session.scalars(waiting, execution_options={"populate_existing": True}).all()


def find_tokens(session: Session, job_id: str) -> dict[str, Any]:
    """Blob key, bytes and sha256 of each file of tokens of a job, by name. Empty if none."""
    check = select(DataCheck.files, DataCheck.shared).where(DataCheck.job_id == job_id)
    files, shared = session.execute(check).one_or_none() or (None, None)
    if files is None and shared is not None:
        is_holder = (DataCheck.shared == shared, DataCheck.files.is_not(None))
        files = session.scalars(select(DataCheck.files).where(*is_holder)).first()
    return files or {}


def pass_on_tokens(session: Session, check: DataCheck) -> list[str]:
    """Leave the tokens of a deleted check to a job that shares them and has not ended.

    Returns:
        Keys of the blobs to free, if there is no such job.
    """
    if check.files is None or check.shared is None:
        return token_keys(check)
    sharers = select(DataCheck.job_id).join(Job, Job.id == DataCheck.job_id)
    is_own = (DataCheck.shared == check.shared, DataCheck.project_id == check.project_id)
    heirs = sharers.where(*is_own, Job.finished_at.is_(None))
    heir = session.scalar(heirs.order_by(Job.id).limit(1).with_for_update(of=DataCheck))
    if heir is None:
        return token_keys(check)
    session.execute(update(DataCheck).where(DataCheck.job_id == heir).values(files=check.files))
    return []


def token_keys(check: DataCheck) -> list[str]:
    """Keys of the blobs that hold the tokens."""
    return [file["key"] for file in (check.files or {}).values()]


class EndedChecks(Repository):
    """The data checks of jobs that have ended, in every project."""

    def forget_tokens(self, *, limit: int) -> list[str]:
        """Forget tokens that no job will read. Returns the keys of the blobs to free afterwards.

        Args:
            limit: maximum number of jobs.
        """
        finished = select(Job.finished_at).where(Job.id == DataCheck.job_id).scalar_subquery()
        is_unneeded = (DataCheck.files.is_not(None), finished.is_not(None), _IS_LAST)
        kept = select(DataCheck).where(*is_unneeded)
        keys = list[str]()
        for check in self._session.scalars(kept.limit(limit).with_for_update()).all():
            keys += token_keys(check)
            check.files = None
        return keys
