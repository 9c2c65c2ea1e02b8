"""Queries for the blobs that rows name, whatever the row is of, and for their store."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, select, true, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute

from app.core.db.base import Installation, Repository
from app.core.db.check_tables import DataCheck, Task
from app.core.db.session import Session
from app.core.db.tables import File, SavedState, UploadPart
from app.core.db.worker_tables import StoredModel

PAGE_ROWS = 500

Row = TypeVar("Row")

_HAS_TOKENS = DataCheck.files.is_not(None)
_HAS_FILES = Task.files.is_not(None)


@dataclass(frozen=True, slots=True)
class NamedBlob:
    """A blob as the row that names it describes it.

    The row is a file, an upload part, a saved state, the check of a job's data, a task or a base
    model.
    """

    key: str
    bytes: int
    sha256: str
    file_id: str | None = None
    job_id: str | None = None
    """Job of the saved state. With `step`, the primary key of the state."""
    step: int | None = None
    part_id: str | None = None
    checked_job_id: str | None = None
    """Job of the data check that made the blob, which contains tokens."""
    task_id: str | None = None
    """Task that made the blob, such as an export."""
    model: tuple[str, str] | None = None
    """Id and checksum of the base model: the primary key of its row."""

    @property
    def owner(self) -> str:
        """Readable name of the object that the blob belongs to, for messages to the operator."""
        if self.job_id is not None:
            return f"the state of {self.job_id} saved at step {self.step}"
        if self.checked_job_id is not None:
            return f"the tokens of {self.checked_job_id}"
        if self.model is not None:
            return f"the base model {self.model[0]}"
        return self.file_id or self.part_id or f"the files of {self.task_id}"


class BlobKeyRepository(Repository):
    """Queries for blobs, over all projects."""

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
        if unknown:  # the others name their blobs inside a column of JSON, so all are read
            for column in (SavedState.files, DataCheck.files, Task.files, StoredModel.files):
                rows = select(column).where(column.is_not(None))
                for files in self._session.scalars(rows.execution_options(yield_per=PAGE_ROWS)):
                    named |= unknown.intersection(file["key"] for file in (files or {}).values())
        return named

    def still_names(self, blob: NamedBlob) -> bool:
        """Whether the row that named the blob still exists and still names it."""
        if blob.job_id is not None:
            state = self._session.get(SavedState, (blob.job_id, blob.step))
            return state is not None and blob in blobs_of_state(state).values()
        if blob.checked_job_id is not None:
            check = self._session.get(DataCheck, blob.checked_job_id)
            return check is not None and blob in _token_blobs(check)
        if blob.task_id is not None:
            task = self._session.get(Task, blob.task_id)
            return task is not None and blob in _task_blobs(task)
        if blob.model is not None:
            model = self._session.get(StoredModel, blob.model)
            return model is not None and blob in blobs_of_model(model).values()
        table, row_id = (File, blob.file_id) if blob.file_id else (UploadPart, blob.part_id)
        row = self._session.get(table, row_id)
        return row is not None and row.blob_key == blob.key

    def delete_saved_state(self, job_id: str, step: int) -> None:
        """Delete a state: the job resumes from an older state, or starts over."""
        state = (SavedState.job_id == job_id, SavedState.step == step)
        self._session.execute(delete(SavedState).where(*state))

    def forget_tokens(self, job_id: str) -> None:
        """Forget the tokens of a job: its training makes them again."""
        check = update(DataCheck).where(DataCheck.job_id == job_id)
        self._session.execute(check.values(files=None))

    def delete_task(self, task_id: str) -> None:
        """Delete a task: the next request for its files makes them again."""
        self._session.execute(delete(Task).where(Task.id == task_id))

    def delete_model(self, model_id: str, sha256: str) -> None:
        """Forget a copy of a base model: `tunery models install` stores it again."""
        copy = (StoredModel.id == model_id, StoredModel.sha256 == sha256)
        self._session.execute(delete(StoredModel).where(*copy))

    def delete_part(self, part_id: str) -> None:
        """Delete a part: its upload can be completed only after its bytes were sent again."""
        self._session.execute(delete(UploadPart).where(UploadPart.id == part_id))


class InstallationRepository(Repository):
    """Queries for the one row of the installation."""

    def read(self) -> Installation:
        return self._session.scalars(select(Installation)).one()

    def propose_store(self, store_id: str) -> None:
        """Give the database a store, unless it has one: the first of several processes decides."""
        first = update(Installation).where(Installation.store_id.is_(None))
        self._session.execute(first.values(store_id=store_id, is_store_marked=False))

    def mark_store(self, store_id: str) -> None:
        """Record that the store of this id has its marker. From now on it is the only one."""
        values = {"store_id": store_id, "is_store_marked": True}
        self._session.execute(update(Installation).values(values))

    def set_signing_key(self, key_id: str | None) -> None:
        self._session.execute(update(Installation).values(signing_key=key_id))

    def forget(self) -> None:
        """Belong to no store and no key, as a database that was restored from a backup."""
        values = dict.fromkeys(column.key for column in Installation.__table__.columns)
        values |= {"id": 1, "is_store_marked": False}
        self._session.execute(update(Installation).values(values))


def iterate_named(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[NamedBlob]:
    """Every blob that a row names and a backup keeps, page by page; see `iterate_rows`."""
    for file in iterate_rows(open_session, File, File.id, page_rows=page_rows):
        yield NamedBlob(file.blob_key, file.bytes, file.sha256, file_id=file.id)
    for part in iterate_rows(open_session, UploadPart, UploadPart.id, page_rows=page_rows):
        yield NamedBlob(part.blob_key, part.bytes, part.sha256, part_id=part.id)
    for state in iterate_states(open_session, page_rows=page_rows):
        yield from blobs_of_state(state).values()
    key = DataCheck.job_id
    for check in iterate_rows(open_session, DataCheck, key, which=_HAS_TOKENS, page_rows=page_rows):
        yield from _token_blobs(check)


def iterate_task_blobs(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[NamedBlob]:
    """The blobs of tasks, page by page. No backup keeps them, because they can be made again."""
    for task in iterate_rows(open_session, Task, Task.id, which=_HAS_FILES, page_rows=page_rows):
        yield from _task_blobs(task)


def iterate_model_objects(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[NamedBlob]:
    """The files of base models in the store. No backup keeps them: they can be installed again."""
    key = (StoredModel.id, StoredModel.sha256)
    for model in iterate_rows(open_session, StoredModel, *key, page_rows=page_rows):
        yield from blobs_of_model(model).values()


def iterate_states(
    open_session: Callable[[], AbstractContextManager[Session]], *, page_rows: int = PAGE_ROWS
) -> Iterator[SavedState]:
    """Every saved state, page by page; see `iterate_rows`."""
    key = (SavedState.job_id, SavedState.step)
    yield from iterate_rows(open_session, SavedState, *key, page_rows=page_rows)


def iterate_rows(
    open_session: Callable[[], AbstractContextManager[Session]],
    table: type[Row],
    *key: InstrumentedAttribute[Any],
    which: ColumnElement[bool] | None = None,
    page_rows: int = PAGE_ROWS,
) -> Iterator[Row]:
    """The rows of a table, page by page, in the order of its primary key.

    Args:
        which: which rows. By default, all of them.
        open_session: called for each page. `Database.reading`, so that no transaction is open
            while the caller does something slow; or one session for all, which see one moment.
    """
    query = select(table).where(true() if which is None else which)
    query = query.order_by(*key).limit(page_rows)
    page_query = query
    while True:
        with open_session() as session:
            page = session.scalars(page_query).all()
        if not page:
            return
        yield from page
        last = [getattr(page[-1], column.key) for column in key]
        page_query = query.where(tuple_(*key) > last)


def blobs_of_state(state: SavedState) -> dict[str, NamedBlob]:
    """The blobs of a saved state by file name."""
    return {
        name: NamedBlob(
            file["key"], file["bytes"], file["sha256"], job_id=state.job_id, step=state.step
        )
        for name, file in state.files.items()
    }


def blobs_of_model(model: StoredModel) -> dict[str, NamedBlob]:
    """The files of a base model in the store, by name."""
    owner = (model.id, model.sha256)
    return {
        name: NamedBlob(file["key"], file["bytes"], file["sha256"], model=owner)
        for name, file in model.files.items()
    }


def _task_blobs(task: Task) -> list[NamedBlob]:
    return [
        NamedBlob(file["key"], file["bytes"], file["sha256"], task_id=task.id)
        for file in (task.files or {}).values()
    ]


def _token_blobs(check: DataCheck) -> list[NamedBlob]:
    return [
        NamedBlob(file["key"], file["bytes"], file["sha256"], checked_job_id=check.job_id)
        for file in (check.files or {}).values()
    ]
