"""What is SQLite's own."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.core.db.session import Database
from app.core.db.sqlite import is_wal_safe, sqlite_driver
from app.core.errors import DatabaseBusyError, StorageFullError
from app.core.settings import Settings
from tests.builders import build_job, dump_tables

pytestmark = pytest.mark.only_sqlite


def pragma(database: Database, name: str) -> object:
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_a_commit_survives_a_power_cut_and_foreign_keys_hold(database: Database) -> None:
    is_full = 2

    assert pragma(database, "synchronous") == is_full
    assert pragma(database, "foreign_keys") == 1
    assert pragma(database, "journal_mode") == "wal"


def test_who_opens_a_new_database_waits_for_who_is_filling_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself refuses at once, whatever its timeout, to set the journal mode meanwhile."""
    has_waited = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: has_waited.set())
    filling = sqlite_driver.connect(str(tmp_path / "new.db"), isolation_level=None)
    filling.execute("CREATE TABLE a (b)")
    filling.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite:///{tmp_path}/new.db")

    with ThreadPoolExecutor(1) as threads:
        mode = threads.submit(pragma, database, "journal_mode")
        assert has_waited.wait(30)
        filling.execute("COMMIT")
        assert mode.result(30) == "wal"
    filling.close()
    database.dispose()


def test_who_opens_a_new_database_does_not_wait_for_ever(tmp_path: Path) -> None:
    filling = sqlite_driver.connect(str(tmp_path / "new.db"), isolation_level=None)
    filling.execute("CREATE TABLE a (b)")
    filling.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite:///{tmp_path}/new.db", busy_timeout_s=0.05)

    with pytest.raises(DatabaseBusyError), database.reading() as session:
        session.connection()
    filling.close()
    database.dispose()


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
    ],
)
def test_versions_with_the_wal_reset_bug_are_known(
    version: tuple[int, ...], *, is_safe: bool
) -> None:
    assert is_wal_safe(version) is is_safe


def test_a_sqlite_with_the_wal_reset_bug_is_used_without_a_wal(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.dispose()
    monkeypatch.setattr(sqlite_driver, "sqlite_version_info", (3, 40, 1))

    careful = Database(settings.resolved_database_url)

    assert pragma(careful, "journal_mode") == "delete"
    careful.dispose()


def fill_the_database(database: Database) -> None:
    """Write until SQLite finds no room; as on a full disk, but only in its own file."""
    with database.writing() as session:
        session.connection().exec_driver_sql("PRAGMA max_page_count = 1")  # that is: no more
        for _ in range(1000):
            session.add(build_job())
            session.flush()


def test_a_full_disk_is_said_to_be_one_and_nothing_was_done(database: Database) -> None:
    before = dump_tables(database)

    with pytest.raises(StorageFullError, match="Nothing was done"):
        fill_the_database(database)

    assert dump_tables(database) == before


@pytest.mark.parametrize(("free_blocks", "meant"), [(15, StorageFullError), (16, OperationalError)])
def test_a_disk_error_is_a_full_disk_only_when_that_is_full(
    free_blocks: int, meant: type[Exception], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite does not say why it could not extend the shared index of its write-ahead log."""
    disk_error = sqlite_driver.OperationalError("disk I/O error")
    disk_error.sqlite_errorcode = 4874  # SQLITE_IOERR_SHMSIZE
    block_size = 4096
    found = os.statvfs_result((block_size, block_size, 0, 0, free_blocks, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "statvfs", lambda _: found)

    with pytest.raises(meant), database.reading():
        raise OperationalError("SELECT 1", None, disk_error)
