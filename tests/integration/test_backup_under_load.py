"""Backups of a service that is being written to: nothing that was acknowledged is missing."""

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.files import FileRepository
from app.core.db.session import Database
from app.core.db.tables import File, Job
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.backup import make_backup
from app.maintenance.backup_format import iterate_blobs, verify
from tests.builders import add_file, add_job
from tests.effort import effort

if TYPE_CHECKING:
    from benchmarks.support.postgres import PostgresServer

WRITERS = 2


class Writer(threading.Thread):
    """Adds files and jobs, and deletes files; it knows what of that was acknowledged."""

    def __init__(self, database: Database, store: LocalBlobStore, seed: int) -> None:
        super().__init__()
        self._database = database
        self._store = store
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._files: list[File] = []
        self.stopping = threading.Event()
        self.error: Exception | None = None
        self.jobs: set[str] = set()
        self.files: set[str] = set()
        """Acknowledged, and never yet asked to be deleted."""
        self.deleted: set[str] = set()

    def run(self) -> None:
        try:
            while not self.stopping.wait(0.002):
                self._write()
        except Exception as error:  # the test says so
            self.error = error

    def _write(self) -> None:
        file = add_file(self._database, self._store, self._random.randbytes(2000))
        self._files.append(file)
        self.files.add(file.id)
        self.jobs.add(add_job(self._database).id)
        if len(self._files) > 20:
            self._forget(self._files.pop(self._random.randrange(len(self._files))))

    def _forget(self, file: File) -> None:
        self.files.discard(file.id)
        with self._database.writing() as session:
            FileRepository(session, DEFAULT_PROJECT_ID).delete(file)
        self._store.delete(file.blob_key)
        self.deleted.add(file.id)


@contextmanager
def writing(database: Database, store: LocalBlobStore) -> Iterator[list[Writer]]:
    writers = [Writer(database, store, seed) for seed in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join()
    assert [writer.error for writer in writers] == [None] * WRITERS


OpenCopy = Callable[[Path], AbstractContextManager[Database]]


@pytest.fixture
def open_copy(database_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> OpenCopy:
    """The database in a backup, brought to life."""

    @contextmanager
    def from_sqlite(backup: Path) -> Iterator[Database]:
        shutil.copy(backup / "tunery.db", tmp_path / "copy.db")
        copy = Database(f"sqlite:///{tmp_path}/copy.db")
        yield copy
        copy.dispose()

    @contextmanager
    def from_postgresql(backup: Path) -> Iterator[Database]:
        server: PostgresServer = request.getfixturevalue("postgres")
        with server.database(migrated=False) as url:
            copy = Database(url)
            copy.backend.load_dump(backup / "database.dump", replace=False)
            yield copy
            copy.dispose()

    return from_sqlite if database_kind == "sqlite" else from_postgresql


def read_column(database: Database, column: InstrumentedAttribute[str]) -> set[str]:
    with database.reading() as session:
        assert database.backend.find_damage(session) == []
        return set(session.scalars(select(column)))


def union(sets: Iterator[set[str]]) -> set[str]:
    return set().union(*(set(one) for one in sets))


@pytest.mark.parametrize(
    ("may_link", "backups"),
    [
        pytest.param(True, effort(8, long=80), id="linked"),
        pytest.param(False, effort(8, long=20), id="copied"),
    ],
)
def test_no_backup_lacks_what_was_acknowledged_before_it_began(
    *,
    may_link: bool,
    backups: int,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    tmp_path: Path,
    open_copy: OpenCopy,
) -> None:
    backups //= 4 if settings.database_url else 1  # to load a dump takes a while
    with writing(database, store) as writers:
        for number in range(backups):
            jobs = union(writer.jobs.copy() for writer in writers)
            files = union(writer.files.copy() for writer in writers)
            deleted = union(writer.deleted.copy() for writer in writers)
            target = tmp_path / f"backup-{number}"

            record = make_backup(settings, target, may_link=may_link)

            kept = union(writer.files.copy() for writer in writers)
            assert record.missing == []
            assert verify(target) == set()
            with open_copy(target) as copy:
                keys = {blob.key for blob in iterate_blobs(target)}
                assert keys == read_column(copy, File.blob_key)
                assert jobs - read_column(copy, Job.id) == set()
                in_backup = read_column(copy, File.id)
            assert (files & kept) - in_backup == set()
            assert deleted & in_backup == set()
            shutil.rmtree(target)

    assert len(union(writer.jobs for writer in writers)) > backups
    assert union(writer.deleted for writer in writers)
