"""Fixtures of the S3 servers. A server runs once for all tests of a process; each test has its own
prefix in the bucket."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.programs import skip_unless_ci
from tests.stores.servers import PROGRAMS, StoreServer


def require_stores() -> None:
    """Skip the test where `make stores` has not run; in CI, fail."""
    if not (PROGRAMS / "rclone").exists():
        skip_unless_ci("The S3 servers are not installed. Run: make stores")


@pytest.fixture(scope="session")
def store_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], StoreServer]]:
    """Starts a server by its name, once."""
    require_stores()
    started: dict[str, StoreServer] = {}

    def start(name: str) -> StoreServer:
        if name not in started:
            started[name] = StoreServer(name, tmp_path_factory.mktemp(name)).start()
        return started[name]

    yield start
    for server in started.values():
        server.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[str], StoreServer]]:
    """Starts a server that only this test uses, such as one that it kills."""
    require_stores()
    started: list[StoreServer] = []

    def start(name: str) -> StoreServer:
        started.append(StoreServer(name, tmp_path / name).start())
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def store_prefix() -> str:
    """A prefix that nobody else uses."""
    return f"tests/{secrets.token_hex(8)}"
