from collections.abc import Iterator

import pytest
from sqlalchemy.exc import DBAPIError

from app.core.db.backend import DatabaseUnusableError
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError
from app.core.settings import Settings
from tests.builders import add_job, build_job, get_job, lock_out_writers


@pytest.fixture
def impatient(database: Database, settings: Settings) -> Iterator[Database]:
    """The same database, for a process that waits for nobody."""
    impatient = Database(settings.resolved_database_url, busy_timeout_s=0)
    yield impatient
    impatient.dispose()


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
        lock_out_writers(session)

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


def test_another_error_of_the_database_is_not_called_busy(database: Database) -> None:
    with pytest.raises(DBAPIError, match="absent"), database.writing() as session:
        session.connection().exec_driver_sql("SELECT * FROM absent")


def test_what_a_block_has_added_can_be_added_again_after_it_has_failed(database: Database) -> None:
    """As a worker does with what a busy database has refused."""
    job = build_job()

    def fail_half_way() -> None:
        with database.writing() as session:
            session.add(job)
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with database.writing() as session:
        session.add(job)

    assert get_job(database, job.id).id == job.id


def test_another_kind_of_database_is_refused_by_name() -> None:
    with pytest.raises(DatabaseUnusableError, match="TUNERY_DATABASE_URL: mysql is neither"):
        Database("mysql://localhost/tunery")


@pytest.mark.only_sqlite
def test_the_version_is_another_after_every_commit(database: Database, settings: Settings) -> None:
    other = Database(settings.resolved_database_url)
    versions = [database.version()]

    add_job(database)
    versions.append(database.version())
    add_job(other)
    versions.append(database.version())
    with database.reading() as session:
        session.connection().exec_driver_sql("SELECT * FROM jobs").all()
    other.dispose()

    assert len({*versions}) == 3
    assert database.version() == versions[-1]


@pytest.mark.only_sqlite
def test_the_version_is_told_while_others_write(database: Database) -> None:
    version = database.version()

    with database.writing() as session:
        lock_out_writers(session)
        assert database.version() == version


@pytest.mark.only_sqlite
def test_the_version_of_a_database_that_is_closed_for_good_is_told_anew(
    database: Database,
) -> None:
    assert database.version() is not None

    database.dispose()

    assert database.version() is not None
