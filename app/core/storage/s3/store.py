"""A `BlobStore` in a bucket.

Uniqueness comes from the keys and commits from the database, because servers differ in which
conditions they honour: decision 0058.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import S3Store

from app.core.errors import BlobExistsError, BlobNotFoundError
from app.core.settings.store_urls import BucketAddress
from app.core.storage.blob_store import RESERVED, StoreConditions, StoredBlob
from app.core.storage.s3 import plain
from app.core.storage.s3.access import S3Access
from app.core.storage.s3.calls import PATIENCE_S, SILENCE_S, AbsentError, Calls, status_of
from app.core.storage.s3.conditions import probe_conditions
from app.core.storage.s3.multiparts import collect_stale
from app.core.storage.s3.reader import FIRST_BYTES, ObjectReader
from app.core.storage.s3.signing import SIGNED_FOR_S, Signer
from app.core.storage.scratch import ScratchSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import GetOptions, ObjectMeta
    from obstore.store import S3Config

PART_BYTES = 5 * 1024 * 1024
"""Size of a part of a large upload, and of the largest object that is uploaded in one request. It
is the smallest that S3 allows, so that a slow line gets a part through in time."""

MAX_PARTS = 9000
"""Parts of the largest upload. S3 allows 10,000."""

PARALLEL = 4
"""Parts that are uploaded at the same time, and so kept in memory."""

_JOINED_BYTES_PER_S = 16 * 1024 * 1024
"""Speed of a slow server that joins the parts of an upload. It says nothing meanwhile."""

_CONNECT_S = 5
_PAGE = 1000
_INVALID_RANGE = 416
_NO_PART = "non-partial response"


class S3BlobStore:
    """Blobs below a prefix of a bucket. They are files in a local directory until they are put.

    Args:
        address: bucket and prefix.
        access: endpoint, region and keys.
        scratch_root: directory in which files are written before they are put.
        patience_s: see `PATIENCE_S`.
    """

    def __init__(
        self,
        address: BucketAddress,
        access: S3Access,
        *,
        scratch_root: Path,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._address = address
        self._access = access
        self._scratch = ScratchSpace(scratch_root)
        self._calls = Calls(str(self), patience_s)
        self._signer = Signer(address, access)
        self._is_careless = False
        self._patience_s = patience_s
        self._store = self._connect(SILENCE_S)

    def __str__(self) -> str:
        at = f" at {self._access.endpoint}" if self._access.endpoint else ""
        return f"s3://{self._address.bucket}/{self._address.prefix}{at}"

    def scratch_file(self) -> Path:
        return self._scratch.scratch_file()

    def list_scratch(self) -> Iterator[Path]:
        return self._scratch.list_scratch()

    def put(self, key: str, scratch: Path) -> None:
        path, size = _checked(key), scratch.stat().st_size
        if size <= PART_BYTES:
            self._create(path, scratch.read_bytes())
        else:
            self._upload(path, scratch, size)
        scratch.unlink(missing_ok=True)  # it may have been freed as left behind

    def open(self, key: str) -> BufferedReader:
        path = _checked(key)

        def begin() -> tuple[int, str | None, memoryview]:
            try:
                result = obstore.get(self._store, path, options={"range": (0, FIRST_BYTES)})
                return result.meta["size"], result.meta["e_tag"], memoryview(result.bytes())
            except GenericError as error:
                if status_of(error) != _INVALID_RANGE and _NO_PART not in str(error):
                    raise
                meta = obstore.head(self._store, path)  # it is empty, or its server is careless
                return meta["size"], meta["e_tag"], memoryview(b"")

        def read_range(begin: int, end: int) -> memoryview:
            try:
                return self._calls.run(lambda: self._read_range(path, etag, begin, end))
            except (AbsentError, PreconditionError) as error:
                raise BlobNotFoundError(key) from error

        try:
            size, etag, first = self._calls.run(begin)
        except AbsentError as error:
            raise BlobNotFoundError(key) from error
        return ObjectReader(read_range, size, first).buffered()

    def delete(self, key: str) -> None:
        path = _checked(key)
        with suppress(AbsentError):
            self._calls.run(lambda: obstore.delete(self._store, path))

    def list_all(self) -> Iterator[StoredBlob]:
        pages, last = self._list_after(None), None

        def take() -> "Sequence[ObjectMeta]":
            nonlocal pages
            try:
                return next(pages, ())
            except (BaseError, FileNotFoundError):
                pages = self._list_after(last)  # a list that broke off cannot be asked again
                raise

        while page := self._calls.run(take):
            for one in page:
                last = one["path"]
                if not last.startswith(RESERVED):
                    age_s = time.time() - one["last_modified"].timestamp()
                    yield StoredBlob(last, one["size"], age_s=age_s)

    def download_url(
        self, key: str, *, filename: str, media_type: str, lifetime_s: int
    ) -> str | None:
        if self._access.key_id is None:
            return None
        query = {
            "response-content-disposition": f"attachment; filename*=UTF-8''{quote(filename, '')}",
            "response-content-type": media_type,
        }
        return self._signer.sign("GET", _checked(key), query, lifetime_s=lifetime_s)

    def collect_stale(self, *, older_than_s: float) -> int | None:
        if self._access.key_id is None:
            return None
        return collect_stale(self._signer, self._calls, older_than_s=older_than_s)

    def probe_conditions(self) -> StoreConditions:
        return probe_conditions(self, self._store, self._calls)

    def _list_after(self, key: str | None) -> "Iterator[Sequence[ObjectMeta]]":
        return iter(obstore.list(self._store, offset=key, chunk_size=_PAGE))  # pyright: ignore[reportUnknownMemberType]

    def _connect(self, silence_s: float) -> S3Store:
        access = self._access
        return S3Store(
            self._address.bucket,
            prefix=self._address.prefix or None,
            config=_config(access),
            client_options={
                "allow_http": (access.endpoint or "").startswith("http:"),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=silence_s),
                "timeout": timedelta(seconds=10 * silence_s),
            },
            # For the parts of a large upload. What is one request is repeated here as well.
            retry_config={
                "max_retries": 8,
                "retry_timeout": timedelta(seconds=self._patience_s),
            },
        )

    def _create(self, key: str, content: bytes) -> None:
        """Upload in one request, which a server that honours conditions refuses the second time."""
        try:
            self._calls.run(lambda: obstore.put(self._store, key, content, mode="create"))
        except AlreadyExistsError as error:
            # The answer to an earlier try may have been lost on its way. Or the try itself broke
            # off, and the server has kept what it got: servers do that.
            with self.open(key) as stored:
                found = stored.read()
            if not content.startswith(found):
                raise BlobExistsError(key) from error
            if found != content:
                self._calls.run(lambda: obstore.put(self._store, key, content))

    def _upload(self, key: str, scratch: Path, size: int) -> None:
        """Upload in parts. After a failure one after another, because the line may be slow."""
        parallel = iter([PARALLEL])
        store = self._connect(SILENCE_S + size / _JOINED_BYTES_PER_S)

        def upload() -> None:
            obstore.put(
                store,
                key,
                scratch,
                use_multipart=True,
                chunk_size=max(PART_BYTES, -(-size // MAX_PARTS)),
                max_concurrency=next(parallel, 1),
            )
            if obstore.head(self._store, key)["size"] != size:
                raise ConnectionError("the server has put only a part of the upload together")

        self._calls.run(upload)

    def _read_range(self, key: str, etag: str | None, begin: int, end: int) -> memoryview:
        options: GetOptions = {"range": (begin, end)}
        if etag:
            options["if_match"] = etag
        try:
            if self._is_careless:
                raise GenericError(_NO_PART)  # noqa: TRY301 - as obstore would, after a request
            content = memoryview(obstore.get(self._store, key, options=options).bytes())
        except GenericError as error:
            if _NO_PART not in str(error):
                raise
            # Some servers send the part, but with the status of a whole, which obstore refuses.
            self._is_careless = True
            url = obstore.sign(self._store, "GET", key, timedelta(seconds=SIGNED_FOR_S))
            content = memoryview(plain.request(url, byte_range=(begin, end), most=end - begin))
        if len(content) != end - begin:
            raise ConnectionError("the answer was cut short")
        return content


def _config(access: S3Access) -> "S3Config":
    config: S3Config = {"region": access.region, "disable_bulk_delete": True}
    if access.endpoint:
        config["endpoint"] = access.endpoint
    if access.key_id and access.secret:
        config["access_key_id"] = access.key_id
        config["secret_access_key"] = access.secret
    if access.token:
        config["session_token"] = access.token
    return config


def _checked(key: str) -> str:
    if not all(part.strip(".") for part in key.split("/")):
        raise ValueError(f"{key!r} leaves the store.")
    return key
