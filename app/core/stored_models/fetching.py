"""Fetches a base model from the store to this machine: once, by its hash, and whole or not at all.

The files arrive in a directory of their own, which gets its name once all of them are there and
have the bytes that were installed. An interrupted fetch continues where it stopped.
"""

import hashlib
import logging
import os
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.adapter_files.header import MAX_HEADER_BYTES
from app.core.base_models import RECORD_NAME, Catalogue, is_weights
from app.core.db.blob_keys import NamedBlob
from app.core.db.repositories.base_models.stored import StoredCopy
from app.core.disk import free_bytes
from app.core.errors import BlobNotFoundError, StoreAwayError
from app.core.job.child.child_text import without_paths
from app.core.machine import durable
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.lock import exclusive

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_LENGTH = struct.Struct("<Q")
"""What a safetensors file begins with: the length of its header, in bytes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a base model is here."""

    bytes: int
    total_bytes: int
    is_waiting: bool = False
    """Whether another process of this machine fetches it."""


Watch = Callable[[Progress], None]
"""Called after each part of a fetch, and while it waits. What it raises stops the fetch."""


class ModelUnavailableError(Exception):
    """A base model is not here and cannot be fetched now. The message says why and what to do."""


def fetch_model(
    copy: StoredCopy,
    catalogue: Catalogue,
    store: BlobStore,
    watch: Watch,
    *,
    spare_bytes: int = 0,
    needs_weights: bool = True,
) -> Path:
    """Return the directory of a base model, with its files as they were installed.

    Several processes and threads may call this at once: one fetches, the others wait for it.

    Args:
        copy: the base model in the store.
        catalogue: the base models of this machine.
        store: has the files.
        watch: is told of the progress.
        spare_bytes: room on the disk that stays free.
        needs_weights: whether an outline is not enough. An outline has of each weight file only the
            header, in a file with a hole of the right size: enough to tokenize, to count parameters
            and to check an adapter.

    Raises:
        ModelUnavailableError: the store has lost or damaged a file, cannot be read, or the disk has
            too little room. What was fetched stays, for the next call.
    """
    installed, waiting = copy.installed, Progress(0, copy.bytes, is_waiting=True)
    version = installed.id, installed.sha256
    outline = catalogue.hidden_directory(*version, "outline")
    # An outline does not wait for weights.
    lock = installed.id if needs_weights else outline.name[1:]
    with exclusive(catalogue, lock, wait=lambda: watch(waiting)):
        found = catalogue.find_version(*version, needs_weights=needs_weights)
        if found is not None:
            return found[1]
        directory = catalogue.directory(installed.id) if needs_weights else outline
        if needs_weights and directory.exists():  # another version, which a job may be reading
            directory = catalogue.version_directory(*version)
        kind = "partial" if needs_weights else "outline-partial"
        partial = catalogue.hidden_directory(*version, kind)
        durable.make_directory(partial)
        with _reported(installed.id):
            fetch = _Fetch(copy, store, partial, watch, needs_weights=needs_weights)
            fetch.take(outline)
            fetch.run(spare_bytes)
        durable.sync(partial)
        partial.rename(directory)
        durable.sync(directory.parent)
        logger.info("%s is in %s, fetched from the store", installed.id, directory)
        return directory


@contextmanager
def _reported(model_id: str) -> Generator[None]:
    """Turn the errors of a store and of a disk into a `ModelUnavailableError`."""
    try:
        yield
    except (OSError, StoreAwayError) as error:
        why = error.for_operator if isinstance(error, StoreAwayError) else str(error)
        logger.warning("fetching %s: %s", model_id, why)
        why = without_paths(why)
        raise ModelUnavailableError(
            f"The base model {model_id} could not be fetched from the store. What has arrived is "
            f"kept, and the next try continues there. {why:.200}"
        ) from error


class _Fetch:
    """One fetch into a directory that may have files of an earlier one."""

    def __init__(
        self,
        copy: StoredCopy,
        store: BlobStore,
        partial: Path,
        watch: Watch,
        *,
        needs_weights: bool,
    ) -> None:
        self._copy = copy
        self._store = store
        self._partial = partial
        self._watch = watch
        self._needs_weights = needs_weights
        self._bytes = 0

    def run(self, spare_bytes: int) -> None:
        """Fetch what is not there.

        Raises:
            ModelUnavailableError: as `fetch_model`.
        """
        if self._needs_weights:
            self._require_room(spare_bytes)
        names = sorted(self._copy.files, key=lambda it: (it == RECORD_NAME, is_weights(it), it))
        for name in names:  # the record last: a directory without it is no installed model
            self._fetch(name, self._copy.files[name])

    def take(self, outline: Path) -> None:
        """Take the files of an outline, if it is here. All but the weights was checked."""
        for name in self._copy.files if outline.exists() else ():
            if not is_weights(name) and not (self._partial / name).exists():
                durable.try_link(outline / name, self._partial / name)

    def _require_room(self, spare_bytes: int) -> None:
        here = sum(path.stat().st_size for path in self._partial.iterdir())
        needed = max(0, self._copy.bytes - here) + spare_bytes
        free = free_bytes(self._partial)
        if needed > free:
            raise ModelUnavailableError(
                f"The base model {self._copy.installed.id} needs {needed / 1e9:.2f} GB more on the "
                f"disk of the worker's data directory, which has {free / 1e9:.2f} GB left. Make "
                "room there, for example with `tunery models remove`."
            )

    def _fetch(self, name: str, blob: NamedBlob) -> None:
        """Fetch a file, unless it is there. A file that has its name was checked."""
        target = self._partial / name
        if not target.exists():
            unfinished = self._partial / f"{name}.incomplete"
            begun = unfinished.stat().st_size if unfinished.exists() else 0
            try:
                if is_weights(name) and not self._needs_weights:
                    self._copy_header(blob, unfinished)
                elif self._transfer(blob, unfinished) != blob.sha256:
                    unfinished.unlink()
                    # After a power cut, a file may have its length and not its bytes.
                    if not begun or self._transfer(blob, unfinished) != blob.sha256:
                        unfinished.unlink(missing_ok=True)
                        raise _lost(name, blob, "does not have the bytes that were installed")
            except BlobNotFoundError as error:
                raise _lost(name, blob, "is missing") from error
            unfinished.rename(target)
        self._bytes += blob.bytes

    def _transfer(self, blob: NamedBlob, unfinished: Path) -> str:
        """Append what is missing. Returns the sha256 of the file as it is then."""
        digest = hashlib.sha256()
        with unfinished.open("a+b") as sink:
            size = sink.seek(0, os.SEEK_END)
            if size > blob.bytes:
                size = sink.truncate(0)
            sink.seek(0)
            while chunk := sink.read(_CHUNK_BYTES):
                digest.update(chunk)
            with self._store.open(blob.key) as source:
                source.seek(size)
                while size < blob.bytes:
                    self._watch(Progress(self._bytes + size, self._copy.bytes))
                    chunk = source.read(min(_CHUNK_BYTES, blob.bytes - size))
                    if not chunk:
                        break
                    sink.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            sink.flush()
            os.fsync(sink.fileno())
        return digest.hexdigest()

    def _copy_header(self, blob: NamedBlob, unfinished: Path) -> None:
        with self._store.open(blob.key) as source, unfinished.open("wb") as sink:
            length = source.read(_LENGTH.size)
            sink.write(length)
            # A length that cannot be right gives a file that no library reads.
            header_bytes = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else 0
            sink.write(source.read(min(header_bytes, MAX_HEADER_BYTES)))
            os.truncate(sink.fileno(), blob.bytes)


def _lost(name: str, blob: NamedBlob, what: str) -> ModelUnavailableError:
    model_id, _ = blob.model or ("", "")
    return ModelUnavailableError(
        f"The file {name} of the base model {model_id} {what} in the store ({blob.key}). Run "
        f"`tunery doctor --deep --repair`, then `tunery models install {model_id}` on a machine "
        "that has it."
    )
