"""Outlines of base models: all their files, but of the weights only the headers.

They are enough to tokenize, to count parameters and to check an adapter. The weights of an outline
are files with holes, of the right size, so an outline takes some megabytes of the disk.
"""

import os
import shutil
import struct
from pathlib import Path

from app.core.adapter_files.header import MAX_HEADER_BYTES
from app.core.base_models import RECORD_NAME, Catalogue, is_weights
from app.core.db.blob_keys import NamedBlob
from app.core.db.repositories.base_models.stored import StoredCopy
from app.core.errors import BlobNotFoundError
from app.core.manifest import sha256_of
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.errors import ModelUnavailableError
from app.core.stored_models.fetching import reported
from app.core.stored_models.lock import exclusive

_LENGTH = struct.Struct("<Q")
"""What a safetensors file begins with: the length of its header, in bytes."""


def make_outline(copy: StoredCopy, catalogue: Catalogue, store: BlobStore) -> Path:
    """Return the directory of a base model's outline, and fetch it if it is not there.

    Raises:
        ModelUnavailableError: the store has lost or damaged a file, or cannot be read.
    """
    installed = copy.installed
    directory = catalogue.hidden_directory(installed.id, installed.sha256, "outline")
    if directory.exists():
        return directory
    with exclusive(catalogue, directory.name[1:]), reported(installed.id):
        if directory.exists():
            return directory
        unfinished = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name in sorted(copy.files, key=lambda name: (name == RECORD_NAME, name)):
            _fetch(name, copy.files[name], unfinished / name, store)
        unfinished.rename(directory)
        return directory


def _fetch(name: str, blob: NamedBlob, target: Path, store: BlobStore) -> None:
    try:
        with store.open(blob.key) as source, target.open("xb") as sink:
            if not is_weights(name):
                shutil.copyfileobj(source, sink)
            else:
                length = source.read(_LENGTH.size)
                sink.write(length)
                # A length that cannot be right gives a file that no library reads.
                header_bytes = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
                sink.write(source.read(min(header_bytes, MAX_HEADER_BYTES)))
                os.truncate(sink.fileno(), blob.bytes)
    except BlobNotFoundError as error:
        raise ModelUnavailableError.of_file(name, blob, "is missing") from error
    if not is_weights(name) and sha256_of(target) != blob.sha256:
        raise ModelUnavailableError.of_file(
            name, blob, "does not have the bytes that were installed"
        )
