"""Every query on uploads and their parts."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, func, select

from app.core.db.base import ProjectRepository, Repository
from app.core.db.tables import Upload, UploadPart
from app.core.errors import NotFoundError

ENDED_KEPT_FOR = timedelta(days=7)
"""How long an upload that has ended can be read and its completion repeated."""

COMPLETION_GRACE = timedelta(minutes=10)
"""Time after expiry before the parts are deleted, so that a running completion can finish."""

_ENDED = ("completed", "cancelled", "expired")


class UploadRepository(ProjectRepository):
    """The uploads of one project."""

    def add(self, upload: Upload) -> None:
        self._add(upload)

    def get(self, upload_id: str) -> Upload:
        """The upload with this id, in any status.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._select(Upload), upload_id)

    def get_to_change(self, upload_id: str) -> Upload:
        """The upload with this id, locked so that no other transaction changes it or adds a part.

        Raises:
            NotFoundError: there is none.
        """
        return self._get(self._select(Upload).with_for_update(), upload_id)

    def list_parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts of an upload, oldest first."""
        query = self._select(UploadPart).where(UploadPart.upload_id == upload_id)
        return self._session.scalars(query.order_by(UploadPart.id)).all()

    def find_part(self, upload_id: str, sha256: str) -> UploadPart | None:
        """The part of an upload with these bytes, or None."""
        same = (UploadPart.upload_id == upload_id, UploadPart.sha256 == sha256)
        return self._session.scalar(self._select(UploadPart).where(*same))

    def measure_parts(self, upload_id: str) -> tuple[int, int]:
        """Number of parts of an upload, and their total size in bytes."""
        columns = (func.count(), func.coalesce(func.sum(UploadPart.bytes), 0))
        query = self._select(UploadPart).where(UploadPart.upload_id == upload_id)
        count, size = self._session.execute(query.with_only_columns(*columns)).one()
        return count, int(size)  # a Decimal on PostgreSQL

    def add_part(self, part: UploadPart) -> None:
        self._add(part)

    def end(self, upload: Upload, status: str) -> list[str]:
        """Set a pending upload's last status. Returns the keys of the blobs that can be deleted."""
        upload.status = status
        self._session.flush()
        parts = self._delete(UploadPart).where(UploadPart.upload_id == upload.id)
        return list(self._session.scalars(parts.returning(UploadPart.blob_key)))

    def _get(self, query: Select[Upload], upload_id: str) -> Upload:
        upload = self._session.scalar(query.where(Upload.id == upload_id))
        if upload is None:
            raise NotFoundError(f"No such upload: {upload_id:.80}", code="upload_not_found")
        return upload


class EndedUploads(Repository):
    """The uploads of every project that nobody needs any more."""

    def expire(self, *, now: datetime, limit: int) -> list[str]:
        """End the expired uploads that nobody can be completing any more.

        Returns the keys of the blobs that can be deleted.
        """
        is_over = Upload.expires_at <= now - COMPLETION_GRACE
        overdue = select(Upload).where(Upload.status == "pending", is_over)
        uploads = self._session.scalars(overdue.limit(limit).with_for_update(skip_locked=True))
        keys: list[str] = []
        for upload in uploads.all():
            keys += UploadRepository(self._session, upload.project_id).end(upload, "expired")
        return keys

    def delete_older(self, *, than: datetime) -> None:
        """Delete the ended uploads whose expiry is older than this time."""
        old = (Upload.status.in_(_ENDED), Upload.expires_at < than)
        self._session.execute(delete(Upload).where(*old))
