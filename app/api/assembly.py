"""Joins the parts of an upload into one file: through checker and hash, in constant memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from app.api.upload_sink import UploadSink
from app.core.dataset.checker import DatasetChecker
from app.core.errors import InvalidRequestError
from app.core.storage.blob_store import BlobStore
from app.services.files import ReceivedFile
from app.services.uploads import Assembly, lost_bytes

_CHUNK_BYTES = 1024 * 1024


def assemble(
    store: BlobStore,
    plan: Assembly,
    scratch: Path,
    *,
    md5: str | None,
    require_room: Callable[[int], None],
) -> ReceivedFile:
    """Write the parts in their order to `scratch`.

    Args:
        md5: of the whole file, in hexadecimal digits, if the client gave it.
        require_room: raises StorageFullError when the disk has no room for so many bytes more.

    Raises:
        BlobNotFoundError: a part is gone, as when the upload was cancelled meanwhile.
        InvalidRequestError: the file has another MD5.
        StateConflictError: the bytes of a part are not those that were received.
        StorageFullError: the disk has no room for it.
    """
    checker = DatasetChecker()
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    require_room(plan.bytes)
    with scratch.open("xb") as target:
        sink = UploadSink(target)
        try:
            for key, sha256 in plan.blobs:
                part_digest = hashlib.sha256()
                with store.open(key) as part:
                    while chunk := part.read(_CHUNK_BYTES):
                        require_room(len(chunk))  # others write, too
                        part_digest.update(chunk)
                        sink.feed(chunk)
                        checker.feed(chunk)
                        if md5:
                            digest.update(chunk)
                        size += len(chunk)
                if part_digest.hexdigest() != sha256:
                    raise lost_bytes(plan.upload_id)
            sink.drain()
        finally:
            sink.close()
    if md5 and digest.hexdigest() != md5.lower():
        raise InvalidRequestError(
            f"The file has the MD5 {digest.hexdigest()}, not {md5.lower()}. Name the parts in the "
            "order in which they stand in the file; if they are, create a new upload.",
            code="upload_md5_mismatch",
            param="md5",
        )
    return ReceivedFile(
        path=scratch,
        filename=plan.filename,
        bytes=size,
        sha256=sink.sha256,
        crc32=sink.crc32,
        summary=checker.finish(),
        fields={},
    )
