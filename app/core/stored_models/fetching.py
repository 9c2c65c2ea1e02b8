"""Fetches a base model from the store to this machine: once, by its hash, and whole or not at all.

The files arrive in a directory of their own, which gets its name once all of them are there and
have the bytes that were installed. An interrupted fetch continues where it stopped.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.base_models import RECORD_NAME, Catalogue, is_weights
from app.core.db.blob_keys import NamedBlob
from app.core.db.repositories.base_models.stored import StoredCopy
from app.core.disk import free_bytes
from app.core.errors import BlobNotFoundError, StoreAwayError
from app.core.job.child_text import without_paths
from app.core.machine import durable
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.errors import ModelUnavailableError
from app.core.stored_models.lock import exclusive

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a base model is here."""

    bytes: int
    total_bytes: int
    is_waiting: bool = False
    """Whether another process of this machine fetches it."""


Watch = Callable[[Progress], None]
"""Called after each part of a fetch, and while it waits. What it raises stops the fetch."""


def fetch_model(
    copy: StoredCopy, catalogue: Catalogue, store: BlobStore, watch: Watch, *, spare_bytes: int = 0
) -> Path:
    """Return the directory of a base model, with its files as they were installed.

    Several processes and threads may call this at once: one fetches, the others wait for it.

    Args:
        copy: the base model in the store.
        catalogue: the base models of this machine.
        store: has the files.
        watch: is told of the progress.
        spare_bytes: room on the disk that stays free.

    Raises:
        ModelUnavailableError: the store has lost or damaged a file, cannot be read, or the disk has
            too little room. What was fetched stays, for the next call.
    """
    installed = copy.installed
    total = copy.bytes
    waiting = Progress(0, total, is_waiting=True)
    with exclusive(catalogue, installed.id, wait=lambda: watch(waiting)):
        found = catalogue.find_version(installed.id, installed.sha256)
        if found is not None:
            return found[1]
        directory = catalogue.directory(installed.id)
        if directory.exists():  # another version, which a job of this machine may be reading
            directory = catalogue.version_directory(installed.id, installed.sha256)
        partial = catalogue.hidden_directory(installed.id, installed.sha256, "partial")
        durable.make_directory(partial)
        with reported(installed.id):
            fetch = _Fetch(copy, store, partial, watch, spare_bytes)
            fetch.take(catalogue.hidden_directory(installed.id, installed.sha256, "outline"))
            fetch.run()
        durable.sync(partial)
        partial.rename(directory)
        durable.sync(directory.parent)
        logger.info("%s is in %s, fetched from the store", installed.id, directory)
        return directory


@contextmanager
def reported(model_id: str) -> Generator[None]:
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
        self, copy: StoredCopy, store: BlobStore, partial: Path, watch: Watch, spare_bytes: int
    ) -> None:
        self._copy = copy
        self._store = store
        self._partial = partial
        self._watch = watch
        self._spare_bytes = spare_bytes
        self._bytes = 0

    def run(self) -> None:
        """Fetch what is not there.

        Raises:
            ModelUnavailableError: as `fetch_model`.
        """
        self._require_room()
        names = sorted(self._copy.files, key=lambda it: (it == RECORD_NAME, is_weights(it), it))
        for name in names:  # the record last: a directory without it is no installed model
            self._fetch(name, self._copy.files[name])

    def take(self, outline: Path) -> None:
        """Take the files of an outline, if it is here. All but the weights was checked."""
        for name in self._copy.files if outline.exists() else ():
            if not is_weights(name) and not (self._partial / name).exists():
                durable.try_link(outline / name, self._partial / name)

    def _require_room(self) -> None:
        here = sum(path.stat().st_size for path in self._partial.iterdir())
        needed = max(0, self._copy.bytes - here) + self._spare_bytes
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
            if self._transfer(blob, unfinished) != blob.sha256:
                unfinished.unlink()
                # After a power cut, a file may have its length and not its bytes.
                if not begun or self._transfer(blob, unfinished) != blob.sha256:
                    unfinished.unlink(missing_ok=True)
                    raise ModelUnavailableError.of_file(
                        name, blob, "does not have the bytes that were installed"
                    )
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
            try:
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
            except BlobNotFoundError as error:
                raise ModelUnavailableError.of_file(unfinished.stem, blob, "is missing") from error
            sink.flush()
            os.fsync(sink.fileno())
        return digest.hexdigest()
