"""A new database of either kind."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.support.postgres import PostgresServer


@contextmanager
def new_database(kind: str, data_dir: Path) -> Generator[str]:
    """The URL of an empty database; one on PostgreSQL has a server of its own.

    Args:
        kind: `sqlite` or `postgresql`.
    """
    if kind == "sqlite":
        yield f"sqlite:///{data_dir / 'tunery.db'}"
        return
    server = PostgresServer(durable=True)
    try:
        with server.database(migrated=False) as url:
            yield url
    finally:
        server.close()
