import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.core.db import session as session_module
from app.core.db.session import Database, _is_wal_safe
from app.core.errors import DatabaseBusyError
from app.core.settings import Settings
from tests.builders import add_job, build_job, get_job


@pytest.fixture
def impatient(database: Database, settings: Settings) -> Iterator[Database]:
    """The same database, for a process that waits for nobody."""
    impatient = Database(settings.resolved_database_url, busy_timeout_s=0)
    yield impatient
    impatient.dispose()


def pragma(database: Database, name: str) -> object:
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_a_commit_survives_a_power_cut_and_foreign_keys_hold(database: Database) -> None:
    is_full = 2

    assert pragma(database, "synchronous") == is_full
    assert pragma(database, "foreign_keys") == 1
    assert pragma(database, "journal_mode") == "wal"


def test_a_block_that_raises_has_done_nothing(database: Database) -> None:
    job = build_job()

    def fail_half_way() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()

    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == 0


def test_what_a_reading_block_changes_is_thrown_away(database: Database) -> None:
    job = add_job(database)

    with database.reading() as session:
        session.merge(job).suffix = "changed"

    assert get_job(database, job.id).suffix is None


def test_a_second_writer_is_told_that_nothing_was_done(
    database: Database, impatient: Database
) -> None:
    with database.writing() as session:
        session.connection()

        with pytest.raises(DatabaseBusyError, match="Nothing was done"):
            add_job(impatient)


def test_a_reader_waits_for_no_writer(database: Database, impatient: Database) -> None:
    job = add_job(database)

    with database.writing() as session:
        session.merge(job).suffix = "not yet committed"
        session.flush()

        assert get_job(impatient, job.id).suffix is None


def test_a_reader_sees_one_moment(database: Database, impatient: Database) -> None:
    with impatient.reading() as reading:
        before = reading.connection().exec_driver_sql("SELECT count(*) FROM jobs").scalar()
        add_job(database)
        after = reading.connection().exec_driver_sql("SELECT count(*) FROM jobs").scalar()

    assert (before, after) == (0, 0)


def test_who_opens_a_new_database_waits_for_who_is_filling_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself refuses at once, whatever its timeout, to set the journal mode meanwhile."""
    has_waited = threading.Event()
    monkeypatch.setattr(session_module.time, "sleep", lambda _: has_waited.set())
    filling = session_module.sqlite_driver.connect(str(tmp_path / "new.db"), isolation_level=None)
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
    filling = session_module.sqlite_driver.connect(str(tmp_path / "new.db"), isolation_level=None)
    filling.execute("CREATE TABLE a (b)")
    filling.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite:///{tmp_path}/new.db", busy_timeout_s=0.05)

    with pytest.raises(DatabaseBusyError), database.reading() as session:
        session.connection()
    filling.close()
    database.dispose()


def test_another_error_of_the_database_is_not_called_busy(database: Database) -> None:
    with pytest.raises(OperationalError, match="no such table"), database.writing() as session:
        session.connection().exec_driver_sql("SELECT * FROM absent")


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
    assert _is_wal_safe(version) is is_safe


def test_a_sqlite_with_the_wal_reset_bug_is_used_without_a_wal(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.dispose()
    monkeypatch.setattr(session_module.sqlite_driver, "sqlite_version_info", (3, 40, 1))

    careful = Database(settings.resolved_database_url)

    assert pragma(careful, "journal_mode") == "delete"
    careful.dispose()
