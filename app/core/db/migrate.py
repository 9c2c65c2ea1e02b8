"""Brings the database to the newest schema; safe when several processes start at once."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.core.db.session import Database

_MIGRATIONS = Path(__file__).parents[3] / "migrations"
_ADVISORY_LOCK = 7_864_839
"""Any number, the same in every process that migrates."""


def upgrade(database: Database) -> None:
    """Apply every migration that is missing, all or none.

    The transaction holds the database's write lock from its start, so a second process waits
    and then finds nothing to do.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
