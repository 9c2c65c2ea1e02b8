"""Opens the database of the service for a command of the operator."""

from collections.abc import Generator
from contextlib import contextmanager

from app.core.db.migrate import prepare
from app.core.db.session import Database
from app.core.occupancy import make_data_dir, occupied
from app.core.settings import Settings, read_settings


@contextmanager
def open_database(settings: Settings | None = None) -> Generator[Database]:
    """The database of the service, which may run or not, or may never have been started."""
    settings = settings or read_settings()
    make_data_dir(settings)
    with occupied(settings):
        database = Database(settings.resolved_database_url)
        try:
            prepare(database)
            yield database
        finally:
            database.dispose()
