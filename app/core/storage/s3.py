"""Blobs in a bucket of S3, or of a server that speaks its protocol, through obstore."""

import time
from collections.abc import Iterator
from datetime import timedelta
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import cast

import obstore
from obstore.store import S3Store

from app.core.errors import BlobNotFoundError
from app.core.settings.store_urls import BucketAddress
from app.core.storage.blob_store import StoredBlob
from app.core.storage.s3_access import S3Access
from app.core.storage.scratch import ScratchSpace

__all__ = ["S3Access", "S3BlobStore"]

PART_BYTES = 5 * 1024 * 1024


class S3BlobStore:
    """A `BlobStore` in a bucket. Files are written to a local directory before they are put."""

    def __init__(self, address: BucketAddress, access: S3Access, *, scratch_root: Path) -> None:
        self._scratch = ScratchSpace(scratch_root)
        config = {"region": access.region, "disable_bulk_delete": True}
        config |= {"endpoint": access.endpoint} if access.endpoint else {}
        config |= {"access_key_id": access.key_id} if access.key_id else {}
        config |= {"secret_access_key": access.secret} if access.secret else {}
        config |= {"session_token": access.token} if access.token else {}
        self._store = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            config=config,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
        )

    def scratch_file(self) -> Path:
        return self._scratch.scratch_file()

    def put(self, key: str, scratch: Path) -> None:
        obstore.put(self._store, _checked(key), scratch, chunk_size=PART_BYTES, max_concurrency=4)
        scratch.unlink()

    def open(self, key: str) -> BufferedReader:
        try:
            content = obstore.get(self._store, _checked(key)).bytes()
        except FileNotFoundError as error:
            raise BlobNotFoundError(key) from error
        return BufferedReader(cast("BufferedReader", BytesIO(content)))

    def delete(self, key: str) -> None:
        obstore.delete(self._store, _checked(key))

    def list_all(self) -> Iterator[StoredBlob]:
        for page in obstore.list(self._store, chunk_size=1000):
            for one in page:
                age_s = time.time() - one["last_modified"].timestamp()
                yield StoredBlob(one["path"], one["size"], age_s=age_s)

    def list_scratch(self) -> Iterator[Path]:
        return self._scratch.list_scratch()


def _checked(key: str) -> str:
    if key.startswith("/") or not all(part.strip(".") for part in key.split("/")):
        raise ValueError(f"{key!r} leaves the store.")
    return key
