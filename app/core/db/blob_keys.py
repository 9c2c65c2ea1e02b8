"""Every query on which blobs the rows name: files, parts of uploads and saved states."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import delete, select, tuple_

from app.core.db.session import Session
from app.core.db.tables import File, SavedState, UploadPart

PAGE_ROWS = 500


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob as a row describes it. A file names it, a part of an upload or a saved state."""

    key: str
    bytes: int
    sha256: str
    file_id: str | None = None
    job_id: str | None = None
    """Of the saved state; with `step` it is the state's primary key."""
    step: int | None = None
    part_id: str | None = None

    @property
    def owner(self) -> str:
        """For people."""
        named = self.file_id or self.part_id
        return named or f"the state of {self.job_id} saved at step {self.step}"


@dataclass(frozen=True, slots=True)
class StateBlobs:
    """A saved state: its primary key, and its blobs by the name of the file."""

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
        """Those of `keys`, at most a few thousand, that a row names."""
        found: set[str] = set()
        for column in (File.blob_key, UploadPart.blob_key):
            found.update(self._session.scalars(select(column).where(column.in_(keys))))
        unknown = set(keys) - found
        if unknown:  # states name their blobs inside a column of JSON, so all are read
            found.update(blob.key for blob in self._saved_states() if blob.key in unknown)
        return found

    def list_of_files(self, *, after: str, limit: int) -> list[NamedBlob]:
        """The blobs of the files whose ids follow `after`, by id."""
        columns = (File.blob_key, File.bytes, File.sha256, File.id)
        query = select(*columns).where(File.id > after).order_by(File.id).limit(limit)
        return [NamedBlob(*row) for row in self._session.execute(query)]

    def list_of_parts(self, *, after: str, limit: int) -> list[NamedBlob]:
        """The blobs of the parts whose ids follow `after`, by id."""
        columns = (UploadPart.blob_key, UploadPart.bytes, UploadPart.sha256, UploadPart.id)
        query = select(*columns).where(UploadPart.id > after).order_by(UploadPart.id).limit(limit)
        return [
            NamedBlob(key, size, sha256, part_id=part_id)
            for key, size, sha256, part_id in self._session.execute(query)
        ]

    def list_states(self, *, after: tuple[str, int], limit: int) -> list[StateBlobs]:
        """The saved states that follow the one of that job and step, by both."""
        place = (SavedState.job_id, SavedState.step)
        query = select(SavedState).where(tuple_(*place) > after).order_by(*place).limit(limit)
        return [_blobs_of(state) for state in self._session.scalars(query)]

    def still_names(self, blob: NamedBlob) -> bool:
        """Whether the row that named it is still there, and still names it."""
        if blob.file_id is not None:
            file = self._session.get(File, blob.file_id)
            return file is not None and file.blob_key == blob.key
        if blob.part_id is not None:
            part = self._session.get(UploadPart, blob.part_id)
            return part is not None and part.blob_key == blob.key
        state = self._session.get(SavedState, (blob.job_id, blob.step))
        return state is not None and blob in _blobs_of(state).blobs.values()

    def forget_saved_state(self, job_id: str, step: int) -> None:
        """The job's next attempt goes on from an older state, or from its first step."""
        state = (SavedState.job_id == job_id, SavedState.step == step)
        self._session.execute(delete(SavedState).where(*state))

    def forget_part(self, part_id: str) -> None:
        """The part's upload can be completed only after its bytes were sent again."""
        self._session.execute(delete(UploadPart).where(UploadPart.id == part_id))

    def _saved_states(self) -> Iterator[NamedBlob]:
        query = select(SavedState).execution_options(yield_per=PAGE_ROWS)
        for state in self._session.scalars(query):
            yield from _blobs_of(state).blobs.values()


def iterate_named(
    open_session: Callable[[], AbstractContextManager[Session]],
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
                page = list_page(BlobKeyRepository(session), after=after, limit=PAGE_ROWS)
            if not page:
                break
            yield from page
            after = page[-1].owner
    for state in iterate_states(open_session):
        yield from state.blobs.values()


def iterate_states(
    open_session: Callable[[], AbstractContextManager[Session]],
) -> Iterator[StateBlobs]:
    """Every saved state, page by page."""
    place = ("", 0)
    while True:
        with open_session() as session:
            page = BlobKeyRepository(session).list_states(after=place, limit=PAGE_ROWS)
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
