"""Every query on files."""

from datetime import datetime

from sqlalchemy import ColumnElement, Select, exists, or_, select

from app.core.db.base import Order, Page, ProjectRepository, Repository
from app.core.db.session import Session
from app.core.db.tables import File, Job, SavedState
from app.core.errors import NotFoundError
from app.core.job.artifacts import ADAPTER_WEIGHTS_NAME
from app.core.job.status import ENDED, UNFINISHED

MADE_BY_JOB = "fine-tune-results"
"""Purpose of a file that a job made."""


class FileRepository(ProjectRepository):
    """The files of one project. Expired files are treated as deleted."""

    def add(self, file: File) -> None:
        self._add(file)

    def get(self, file_id: str, *, now: datetime) -> File:
        """The file with this id.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._visible(now), file_id)

    def get_to_use(self, file_id: str, *, now: datetime | None, param: str) -> File:
        """The file with this id, locked so that nobody deletes it before a job names it.

        Args:
            now: None to find the file even if it has expired.
            param: field of the request that names the file.

        Raises:
            NotFoundError: no file has this id.
        """
        return self._get(self._visible(now).with_for_update(read=True), file_id, param)

    def get_to_delete(self, file_id: str, *, now: datetime) -> File:
        """The file with this id, locked so that no new job names it before it is deleted.

        Raises:
            NotFoundError: no file has this id.
        """
        return self._get(self._visible(now).with_for_update(), file_id)

    def get_for_job(self, file_id: str) -> File:
        """The file with this id even if it has expired, because an accepted job may read it.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._select(File), file_id)

    def find_weights(self, checkpoint_id: str) -> File | None:
        """The file with the weights of a checkpoint. None if the checkpoint was deleted."""
        which = (File.checkpoint_id == checkpoint_id, File.filename == ADAPTER_WEIGHTS_NAME)
        return self._session.scalar(self._select(File).where(*which))

    def list_page(
        self,
        *,
        now: datetime,
        after: str | None,
        limit: int,
        order: Order,
        purpose: str | None,
        checkpoint: str | None,
    ) -> Page[File]:
        """Uploaded files and loss logs, or the files that a filter asks for.

        Args:
            purpose: only files of this purpose; `MADE_BY_JOB` includes those of checkpoints.
            checkpoint: only files of the checkpoint with this id.
        """
        query = self._visible(now)
        if purpose is not None:
            query = query.where(File.purpose == purpose)
        if checkpoint is not None:
            # A subquery, because SQLite would otherwise scan the whole index that is in this order.
            parts = select(File.id).where(File.checkpoint_id == checkpoint)
            query = query.where(File.id.in_(parts))
        elif purpose != MADE_BY_JOB:
            query = query.where(File.checkpoint_id.is_(None))
        return self._fetch_page(query, File.id, after=after, limit=limit, order=order)

    def find_unfinished_job_using(self, file_id: str) -> str | None:
        """The id of an unfinished job that needs this file, or None."""
        is_own = Job.project_id == self._project_id
        # Not `in_(UNFINISHED)`: SQLite would look for the status, and read every unfinished job.
        return _find_job_using(self._session, file_id, is_own, Job.status.not_in(ENDED))

    def delete(self, file: File) -> None:
        """Delete a file, and remove it from the job that names it as its result."""
        self._session.execute(
            self._update(Job).where(Job.result_file_id == file.id).values(result_file_id=None)
        )
        self._session.execute(self._delete(File).where(File.id == file.id))

    def _get(self, query: Select[File], file_id: str, param: str | None = None) -> File:
        file = self._session.scalar(query.where(File.id == file_id))
        if file is None:
            raise NotFoundError(f"No such file: {file_id:.80}", code="file_not_found", param=param)
        return file

    def _visible(self, now: datetime | None) -> Select[File]:
        query = self._select(File)
        if now is None:
            return query
        return query.where(or_(File.expires_at.is_(None), File.expires_at > now))


class ExpiredFiles(Repository):
    """The files of every project that have expired and that no job needs."""

    def delete(self, *, now: datetime, limit: int) -> list[str]:
        """Delete them. Returns the keys of the blobs that can now be deleted."""
        expired = self.list_all(now=now, limit=limit)
        for file in expired:
            FileRepository(self._session, file.project_id).delete(file)
        return [file.blob_key for file in expired]

    def list_all(self, *, now: datetime, limit: int) -> list[File]:
        """The files, locked so that no new job uses them.

        A job that has ended still needs its files while it has a saved state to rerun from.
        """
        has_state = exists().where(SavedState.job_id == Job.id)
        is_needed = or_(Job.status.in_(UNFINISHED), has_state)
        still_read = select(Job.id).where(
            is_needed,
            or_(Job.training_file_id == File.id, Job.validation_file_id == File.id),
        )
        query = select(File).where(File.expires_at <= now, ~still_read.exists()).limit(limit)
        files = self._session.scalars(query.with_for_update(skip_locked=True)).all()
        # Checked again, because a job may have been created before the rows were locked.
        return [file for file in files if not _find_job_using(self._session, file.id, is_needed)]


def _find_job_using(session: Session, file_id: str, *which: ColumnElement[bool]) -> str | None:
    uses = (Job.training_file_id == file_id, Job.validation_file_id == file_id)
    queries = (select(Job.id).where(use, *which).limit(1) for use in uses)
    return next(filter(None, map(session.scalar, queries)), None)
