"""A service whose bytes are in a bucket, for the tests of what is around the store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.opening import open_store
from tests.stores.servers import BUCKET, StoreServer

LARGE = bytes(range(256)) * 4096 * 3
"""More than a chunk of a download."""


@pytest.fixture
def server(
    own_server: Callable[[str], StoreServer], monkeypatch: pytest.MonkeyPatch
) -> StoreServer:
    server = own_server("localbucket")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def settings(settings: Settings, server: StoreServer, store_prefix: str) -> Settings:
    return settings.model_copy(update={"store_url": f"s3://{BUCKET}/{store_prefix}"})


@pytest.fixture
def store(settings: Settings) -> BlobStore:
    return open_store(settings)


def keys_of(store: BlobStore) -> list[str]:
    return sorted(blob.key for blob in store.list_all())


def left_here(settings: Settings) -> list[Path]:
    """What is left on this machine of files that were on their way to the store."""
    return [path for path in settings.blobs_dir.rglob("*") if path.is_file()]


def damage(server: StoreServer, settings: Settings, key: str) -> None:
    """Change one byte of a blob behind the back of everybody."""
    prefix = settings.store_url.removeprefix("s3://")
    path = server.root / "data" / prefix / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
