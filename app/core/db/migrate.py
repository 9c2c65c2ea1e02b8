"""Brings the database to the newest schema; safe when several processes start at once."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from app.core.db.session import Database

_MIGRATIONS = Path(__file__).parents[3] / "migrations"
_ADVISORY_LOCK = 7_864_839
"""Any number, the same in every process that migrates."""


class BrokenReferenceError(Exception):
    """A migration would leave rows that name others which do not exist; it was rolled back."""


def upgrade(database: Database, revision: str = "head") -> None:
    """Apply every migration up to `revision` that is missing, all or none.

    The transaction holds a lock from its start, so a second process waits and then finds nothing
    to do. Where nothing is missing, no lock is taken: a process can start while another writes.

    Raises:
        DatabaseBusyError: the database is busy or away.
        BrokenReferenceError: the migrations and the rows there are do not go together.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    wanted = ScriptDirectory.from_config(config).get_revisions(revision)
    with database.reading() as session:
        present = MigrationContext.configure(session.connection()).get_current_heads()
    if set(present) == {script.revision for script in wanted if script}:
        return
    transaction = _on_sqlite if database.engine.dialect.name == "sqlite" else _on_postgresql
    with database.service_errors(), transaction(database.engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@contextmanager
def _on_sqlite(engine: Engine) -> Generator[Connection]:
    """A transaction in which a table that others reference can be replaced.

    SQLite changes little of a table in place, so alembic copies it and drops the old one; with
    foreign keys enforced, that would be refused. Source: sqlite.org/lang_altertable.html, 7.
    """
    with engine.connect() as connection:
        _enforce_foreign_keys(connection, "OFF")
        try:
            with connection.begin():
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                if broken is not None:
                    table, row, parent, _ = broken
                    raise BrokenReferenceError(f"Row {row} of {table} names no row of {parent}.")
        finally:
            _enforce_foreign_keys(connection, "ON")


def _enforce_foreign_keys(connection: Connection, state: str) -> None:
    """By the driver's own cursor: in a transaction, which SQLAlchemy would begin, it does nothing.

    The state stays with the connection when it goes back to the pool.
    """
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA foreign_keys = {state}")
    cursor.close()


@contextmanager
def _on_postgresql(engine: Engine) -> Generator[Connection]:
    """A transaction that waits for another process's migrations however long they take.

    And that may itself compute for long, but waits for a table no longer than any other.
    """
    with engine.begin() as connection:
        usual = connection.scalar(text("SHOW lock_timeout"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        connection.execute(text(f"SET LOCAL lock_timeout = '{usual}'"))
        yield connection
