"""Verifies a downloaded adapter offline: its signature, then every file against its manifest.

The adapter is a directory or the zip archive that the API serves. Both may be forged: nothing of
them is written anywhere, and no more of a file is read than its manifest lists.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from app.core import manifest
from app.core.errors import OperatorError
from app.core.job.scores.card import REPORT_CARD_NAME
from app.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, ManifestError, ManifestFile
from app.core.signing.signatures import SIGNATURE_BYTES, PublicKey, find_signer

_CHUNK_BYTES = 1024 * 1024

_UNSIGNED_NAMES = manifest.UNLISTED_NAMES | {REPORT_CARD_NAME}

Files = Mapping[str, Callable[[], IO[bytes]]]
"""What opens each file of an adapter, by name."""


class NotGenuineError(Exception):
    """The adapter is not the one that the service signed. The message says why."""


class NoAdapterError(OperatorError):
    """There is neither a directory nor a zip archive at the path."""


def verify_adapter(path: Path, keys: Sequence[PublicKey]) -> tuple[Manifest, PublicKey]:
    """Check the signature and every file of the adapter at `path`.

    Args:
        keys: the public keys that are trusted, obtained before and not with the adapter.

    Returns:
        The manifest, and the key that it is signed with.

    Raises:
        NotGenuineError: it is not signed by one of the keys, or a file is not as signed.
        NoAdapterError: there is nothing to check.
    """
    try:
        with _open_adapter(path) as files:
            return _verify(files, keys)
    except ManifestError as error:
        raise NotGenuineError(f"{error}.") from error
    # What the zip module raises for a damaged archive, one that is encrypted or otherwise packed.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise NotGenuineError(f"{path} is not an intact zip archive: {error}.") from error


def _verify(files: Files, keys: Sequence[PublicKey]) -> tuple[Manifest, PublicKey]:
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        if name not in files:
            raise NotGenuineError(f"It is not signed: it has no {name}.")
    content = _read(files[MANIFEST_NAME], manifest.MAX_BYTES)
    signer = find_signer(content, _read(files[SIGNATURE_NAME], SIGNATURE_BYTES), keys)
    if signer is None:
        raise NotGenuineError("Its signature is by none of the given keys, or it was changed.")
    promised = manifest.parse(content)
    actual = {
        name: _describe(open_file, promised.files.get(name))
        for name, open_file in files.items()
        if name not in _UNSIGNED_NAMES
    }
    manifest.check(promised, actual)
    return promised, signer


def _read(open_file: Callable[[], IO[bytes]], limit: int) -> bytes:
    """The content of a file, and one byte more than `limit` at most."""
    with open_file() as source:
        return source.read(limit + 1)


def _describe(open_file: Callable[[], IO[bytes]], promised: ManifestFile | None) -> ManifestFile:
    """Hash a file, up to a little more than it should have."""
    digest, size = hashlib.sha256(), 0
    limit = promised.bytes if promised is not None else 0
    with open_file() as source:
        while size <= limit and (chunk := source.read(_CHUNK_BYTES)):
            digest.update(chunk)
            size += len(chunk)
    return ManifestFile(bytes=size, sha256=digest.hexdigest())


@contextmanager
def _open_adapter(path: Path) -> Generator[Files]:
    if path.is_dir():
        yield _list_directory(path)
    elif path.is_file():
        with zipfile.ZipFile(path) as archive:
            yield _list_archive(archive)
    else:
        raise NoAdapterError(f"{path} is neither a directory nor a zip archive.")


def _list_directory(directory: Path) -> Files:
    paths = sorted(directory.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise NotGenuineError(f"{path.name} is not a regular file.")
    return {path.name: partial(path.open, "rb") for path in paths}


def _list_archive(archive: zipfile.ZipFile) -> Files:
    members = archive.infolist()
    files = {member.filename: partial(archive.open, member) for member in members}
    if len(files) < len(members):  # which of the two a program unpacks is its choice
        raise NotGenuineError("The archive has two files of one name.")
    return files
