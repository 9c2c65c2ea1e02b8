"""Brings the database to the newest schema. Several processes may start at once."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.core.db.session import Database, Session
from app.core.errors import OperatorError

MIGRATIONS = Path(__file__).parents[3] / "migrations"


class NewerSchemaError(OperatorError):
    """A newer version of the service has changed the tables of the database."""


def prepare(database: Database) -> None:
    """Bring the database to the newest schema, at the start of a process.

    Raises:
        OperatorError: it is of a newer version, damaged, or closed to this process.
        DatabaseBusyError: it is busy or away.
    """
    require_known_schema(database)
    upgrade(database)


def upgrade(database: Database, revision: str = "head", *, migrations: Path = MIGRATIONS) -> None:
    """Apply every missing migration up to `revision`, all or none.

    The transaction holds a lock from its start, so a second process waits and then has nothing to
    do. If nothing is missing, no lock is taken: a process can start while another one writes.

    Raises:
        DatabaseBusyError: the database is busy or away.
        BrokenReferenceError: a migration would leave rows that reference missing rows.
    """
    config = _config(migrations)
    wanted = ScriptDirectory.from_config(config).get_revisions(revision)
    with database.reading() as session:
        present = MigrationContext.configure(session.connection()).get_current_heads()
    if set(present) == {script.revision for script in wanted if script}:
        return
    with database.service_errors(), database.backend.migrating() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def require_known_schema(database: Database) -> None:
    """Check that this version of the service knows the database's schema.

    Raises:
        NewerSchemaError: it does not.
        DatabaseBusyError: the database is busy or away.
    """
    with database.reading() as session:
        revision = read_revision(session)
    if revision is not None and not is_known_revision(revision):
        raise NewerSchemaError(
            f"The database has schema {revision}, from a newer version of Tunery than this one. "
            "Run that version, or restore a backup that this version made."
        )


def read_revision(session: Session) -> str | None:
    """The newest migration that was applied; None before the first."""
    return MigrationContext.configure(session.connection()).get_current_revision()


def newest_revision() -> str | None:
    """The newest migration of this version of the service."""
    return _scripts().get_current_head()


def is_known_revision(revision: str) -> bool:
    """False for a revision of a newer version of the service."""
    return revision in {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(MIGRATIONS))


def _config(migrations: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    return config
