"""Opens the database of the service for a command of the operator."""

from collections.abc import Generator
from contextlib import contextmanager

from app.core.db.migrate import require_known_schema, upgrade
from app.core.db.session import Database
from app.core.occupancy import occupied
from app.core.settings import Settings, read_settings


@contextmanager
def open_database(settings: Settings | None = None) -> Generator[Database]:
    """The database of the service, which may run or not, or may never have been started."""
    settings = settings or read_settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with occupied(settings):
        database = Database(settings.resolved_database_url)
        try:
            require_known_schema(database)
            upgrade(database)
            yield database
        finally:
            database.dispose()
