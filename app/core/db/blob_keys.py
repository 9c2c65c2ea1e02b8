"""Every query for the blobs that rows name: rows of files, upload parts and saved states."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import delete, select, tuple_

from app.core.db.session import Session
from app.core.db.tables import File, SavedState, UploadPart

PAGE_ROWS = 500


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob as the row that names it describes it: a file, an upload part or a saved state."""

    key: str
    bytes: int
    sha256: str
    file_id: str | None = None
    job_id: str | None = None
    """Job of the saved state. With `step`, the primary key of the state."""
    step: int | None = None
    part_id: str | None = None

    @property
    def owner(self) -> str:
        """The row that names the blob, for people."""
        return (
            self.file_id or self.part_id or f"the state of {self.job_id} saved at step {self.step}"
        )


@dataclass(frozen=True, slots=True)
class StateBlobs:
    """Primary key of a saved state, and its blobs by file name."""

    job_id: str
    step: int
    blobs: dict[str, NamedBlob]


class BlobKeyRepository:
    """The blobs of every project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def names_any(self) -> bool:
        """Whether any row names a blob."""
        columns = (File.id, UploadPart.id, SavedState.job_id)
        queries = (select(column).limit(1) for column in columns)
        return any(self._session.scalar(query) is not None for query in queries)

    def find_named(self, keys: Collection[str]) -> set[str]:
        """The keys that a row names, among `keys`: at most a few thousand."""
        named: set[str] = set()
        for column in (File.blob_key, UploadPart.blob_key):
            named.update(self._session.scalars(select(column).where(column.in_(keys))))
        unknown = set(keys) - named
        if unknown:  # states name their blobs inside a column of JSON, so all are read
            named.update(blob.key for blob in self._saved_states() if blob.key in unknown)
        return named

    def list_of_files(self, *, after: str, limit: int) -> list[NamedBlob]:
        """Blobs of the files after the id `after`, in order of id."""
        columns = (File.blob_key, File.bytes, File.sha256, File.id)
        query = select(*columns).where(File.id > after).order_by(File.id).limit(limit)
        return [NamedBlob(*row) for row in self._session.execute(query)]

    def list_of_parts(self, *, after: str, limit: int) -> list[NamedBlob]:
        """Blobs of the upload parts after the id `after`, in order of id."""
        columns = (UploadPart.blob_key, UploadPart.bytes, UploadPart.sha256, UploadPart.id)
        query = select(*columns).where(UploadPart.id > after).order_by(UploadPart.id).limit(limit)
        return [
            NamedBlob(key, size, sha256, part_id=part_id)
            for key, size, sha256, part_id in self._session.execute(query)
        ]

    def list_states(self, *, after: tuple[str, int], limit: int) -> list[StateBlobs]:
        """Saved states after the job and step `after`, in this order."""
        place = (SavedState.job_id, SavedState.step)
        query = select(SavedState).where(tuple_(*place) > after).order_by(*place).limit(limit)
        return [_blobs_of(state) for state in self._session.scalars(query)]

    def still_names(self, blob: NamedBlob) -> bool:
        """Whether the row that named the blob still exists and still names it."""
        if blob.file_id is not None:
            file = self._session.get(File, blob.file_id)
            return file is not None and file.blob_key == blob.key
        if blob.part_id is not None:
            part = self._session.get(UploadPart, blob.part_id)
            return part is not None and part.blob_key == blob.key
        state = self._session.get(SavedState, (blob.job_id, blob.step))
        return state is not None and blob in _blobs_of(state).blobs.values()

    def delete_saved_state(self, job_id: str, step: int) -> None:
        """Delete a state: the job resumes from an older state, or starts over."""
        state = (SavedState.job_id == job_id, SavedState.step == step)
        self._session.execute(delete(SavedState).where(*state))

    def delete_part(self, part_id: str) -> None:
        """Delete a part: its upload can be completed only after its bytes were sent again."""
        self._session.execute(delete(UploadPart).where(UploadPart.id == part_id))

    def _saved_states(self) -> Iterator[NamedBlob]:
        query = select(SavedState).execution_options(yield_per=PAGE_ROWS)
        for state in self._session.scalars(query):
            yield from _blobs_of(state).blobs.values()


def iterate_named(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[NamedBlob]:
    """Every blob that a row names, page by page.

    Args:
        open_session: called for each page. `Database.reading`, so that no transaction is open
            while the caller does something slow; or one session for all, which see one moment.
    """
    for list_page in (BlobKeyRepository.list_of_files, BlobKeyRepository.list_of_parts):
        after = ""
        while True:
            with open_session() as session:
                page = list_page(BlobKeyRepository(session), after=after, limit=page_rows)
            if not page:
                break
            yield from page
            after = page[-1].owner
    for state in iterate_states(open_session, page_rows=page_rows):
        yield from state.blobs.values()


def iterate_states(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[StateBlobs]:
    """Every saved state, page by page."""
    place = ("", 0)
    while True:
        with open_session() as session:
            page = BlobKeyRepository(session).list_states(after=place, limit=page_rows)
        if not page:
            return
        yield from page
        place = (page[-1].job_id, page[-1].step)


def _blobs_of(state: SavedState) -> StateBlobs:
    blobs = {
        name: NamedBlob(
            file["key"], file["bytes"], file["sha256"], job_id=state.job_id, step=state.step
        )
        for name, file in state.files.items()
    }
    return StateBlobs(state.job_id, state.step, blobs)
