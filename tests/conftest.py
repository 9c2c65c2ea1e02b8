"""What tests share. A fixture makes a thing; a builder in `builders.py` makes it different."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from hypothesis import settings as hypothesis_settings
from sqlalchemy import make_url
from starlette.testclient import TestClient

from app.core.base_models import Catalogue, load_catalogue
from app.core.db.migrate import upgrade
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from benchmarks.support.postgres import PostgresServer, find_programs
from tests.asgi import stock_client
from tests.builders import write_catalogue
from tests.fakes import FrozenClock
from tests.models import embedded_model_dir
from tests.stores.fixtures import own_server, store_prefix, store_server

__all__ = ["embedded_model_dir", "own_server", "store_prefix", "store_server"]

for name in [
    name
    for name in os.environ
    if name.startswith(("TUNERY_", "AWS_")) and not name.startswith("TUNERY_TEST_")
]:
    del os.environ[name]  # a developer's own settings must not decide a test

# Tests run beside each other, one process a core: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every run, and no data base of old ones: a test that fails, fails again.
hypothesis_settings.register_profile("tunery", derandomize=True, database=None, deadline=None)
hypothesis_settings.load_profile("tunery")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no process is left alone with it at the end."""
    ranks = {name: rank for rank, name in enumerate(("chaos", "acceptance", "integration"))}
    tests = Path(__file__).parent
    items.sort(key=lambda item: ranks.get(item.path.relative_to(tests).parts[0], len(ranks)))


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """For what sets up the log of its process: afterwards it is as before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with the catalogue and the models of `write_catalogue`."""
    directory = tmp_path / "data"
    write_catalogue(directory)
    return directory


@pytest.fixture
def settings(data_dir: Path, database_url: str) -> Settings:
    return Settings(
        _env_file=None,  # pyright: ignore[reportCallIssue] - pydantic-settings takes it
        data_dir=data_dir,
        database_url=database_url,
        poll_interval_s=0.01,
        training_threads=1,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What uses a database is tested on both kinds, unless it is marked `only_sqlite`."""
    uses_one = {"database", "empty_database_url"} & set(metafunc.fixturenames)
    is_ours = "database_kind" in metafunc.fixturenames  # and not a database of the module's own
    if uses_one and is_ours and metafunc.definition.get_closest_marker("only_sqlite") is None:
        metafunc.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "sqlite")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of this process's tests. Backups find `pg_dump` of the same version in PATH."""
    server = PostgresServer()
    server.migrate_template()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(find_programs()), prepend=os.pathsep)
        yield server
    server.close()


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> str:
    """As in the settings: empty for SQLite in the data directory."""
    if database_kind == "sqlite":
        return ""
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.empty_database()


@pytest.fixture
def empty_database_url(
    database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Of a database that has no table yet."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/new/tunery.db"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    with postgres.database(migrated=False) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with every migration applied; copied, because migrating is slower."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    database = Database(f"sqlite:///{path}")
    upgrade(database)
    database.dispose()
    return path


@pytest.fixture
def database(settings: Settings, migrated_file: Path) -> Iterator[Database]:
    if not settings.database_url:
        shutil.copyfile(migrated_file, settings.data_dir / "tunery.db")
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


@pytest.fixture
def store(settings: Settings) -> LocalBlobStore:
    return LocalBlobStore(settings.blobs_dir)


@pytest.fixture
def catalogue(data_dir: Path) -> Catalogue:
    return load_catalogue(data_dir)


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def app(settings: Settings, database: Database) -> Iterator[FastAPI]:
    """On the same database as `database`, and the same store as `store`."""
    assert database.engine.url == make_url(settings.resolved_database_url)
    app = create_app(settings)
    own: Database = app.state.resources.database
    yield app
    own.dispose()  # it may not have been started, and so not stopped


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Plain HTTP, as a hostile or careless client would speak it."""
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def strict(client: TestClient) -> Iterator[openai.OpenAI]:
    """The stock client, which refuses every answer that is not as OpenAI documents it."""
    with stock_client(client, is_strict=True) as strict:
        yield strict
