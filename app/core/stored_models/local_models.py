"""The base models of the API's machine, which may have none: it fetches what a request needs."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.core.base_models import Catalogue, InstalledModel
from app.core.db.repositories.base_models.stored import StoredCopy, StoredModels
from app.core.db.session import Database, Session
from app.core.errors import BaseModelNotHereError
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.errors import ModelUnavailableError
from app.core.stored_models.fetching import Progress, fetch_model
from app.core.stored_models.outlines import make_outline

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSING_S = 5.0
"""How long the end of the API waits for a fetch to notice it, in seconds."""


class _StoppedError(Exception):
    """The API stops; what has arrived is kept."""


class LocalModels:
    """Files of base models for requests.

    Args:
        catalogue: the base models of this machine.
        database: says which are in the store.
        store: has their files.
        spare_bytes: room on the disk that stays free.
    """

    def __init__(
        self, catalogue: Catalogue, database: Database, store: BlobStore, *, spare_bytes: int
    ) -> None:
        self.catalogue = catalogue
        self._database = database
        self._store = store
        self._spare_bytes = spare_bytes
        self._lock = threading.Lock()
        self._fetches: dict[str, _Fetch] = {}
        self._is_closed = threading.Event()

    def read(self, act: Callable[[Session], T]) -> T:
        """Run queries that see one consistent state of the database."""
        return self._database.read(act)

    def without_weights(self, installed: InstalledModel) -> Path:
        """Absolute directory with all files of a base model, where weights may have no bytes.

        Raises:
            BaseModelNotHereError: the files cannot be fetched.
        """
        found = self.catalogue.find_version(installed.id, installed.sha256)
        if found is not None:
            return found[1].absolute()
        copy = self._find_copy(installed)
        try:
            return make_outline(copy, self.catalogue, self._store).absolute()
        except ModelUnavailableError as error:
            logger.warning("%s", error)
            raise BaseModelNotHereError(str(error)) from error

    def with_weights(self, installed: InstalledModel) -> Path:
        """Absolute directory of a base model. The first call begins to fetch one that is not here.

        Raises:
            BaseModelNotHereError: it is being fetched, or cannot be.
        """
        found = self.catalogue.find_version(installed.id, installed.sha256)
        if found is not None:
            return found[1].absolute()
        copy = self._find_copy(installed)
        with self._lock:
            fetch = self._fetches.get(installed.sha256)
            if fetch is None or not fetch.thread.is_alive():
                error = None if fetch is None else fetch.error
                fetch = self._fetches[installed.sha256] = _Fetch(self, copy)
                fetch.thread.start()
                if error is not None:
                    raise BaseModelNotHereError(f"{error} It is being tried again.")
        raise BaseModelNotHereError(
            f"The base model {installed.id} is being fetched to the machine that answers: "
            f"{fetch.bytes / 1e9:.2f} of {copy.bytes / 1e9:.2f} GB are there. Send the request "
            "again in a moment."
        )

    def close(self) -> None:
        """Stop what is being fetched. A later process continues it."""
        self._is_closed.set()
        with self._lock:
            fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.thread.join(_CLOSING_S)

    def _find_copy(self, installed: InstalledModel) -> StoredCopy:
        copy = self.read(lambda it: StoredModels(it).find(installed.id, installed.sha256))
        if copy is None:
            raise BaseModelNotHereError(
                f"The base model {installed.id} is neither on the machine that answers nor in the "
                f"store any more. Run: tunery models install {installed.id}"
            )
        return copy

    def fetch(self, fetch: "_Fetch") -> None:
        """Fetch a base model, in a thread of its own."""

        def watch(progress: Progress) -> None:
            fetch.bytes = progress.bytes
            if self._is_closed.is_set():
                raise _StoppedError

        try:
            fetch_model(
                fetch.copy, self.catalogue, self._store, watch, spare_bytes=self._spare_bytes
            )
        except _StoppedError:
            return
        except ModelUnavailableError as error:
            logger.warning("%s", error)
            fetch.error = str(error)
        except Exception as error:
            logger.exception("a base model cannot be fetched")
            fetch.error = f"The base model cannot be fetched: {type(error).__name__}."


class _Fetch:
    """A base model that is being fetched, or could not be."""

    def __init__(self, models: LocalModels, copy: StoredCopy) -> None:
        self.copy = copy
        self.bytes = 0
        """Bytes that are here."""
        self.error: str | None = None
        self.thread = threading.Thread(target=models.fetch, args=(self,), daemon=True)
