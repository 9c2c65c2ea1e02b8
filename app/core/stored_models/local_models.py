"""The base models of the API's machine, which may have none: it fetches what a request needs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from app.core.base_models import Catalogue, InstalledModel
from app.core.clock import steady_s
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.session import Database, Session
from app.core.errors import BaseModelNotHereError
from app.core.storage.blob_store import BlobStore
from app.core.stored_models.fetching import ModelUnavailableError, Progress, fetch_model

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_FETCH_S = 10.0
"""How long one request fetches a base model, in seconds. The next one continues there."""


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

    def read(self, act: Callable[[Session], T]) -> T:
        """Run queries that see one consistent state of the database."""
        return self._database.read(act)

    def find(self, installed: InstalledModel, *, needs_weights: bool) -> Path:
        """Absolute directory of a base model, which is fetched if it is not here.

        Args:
            installed: the base model.
            needs_weights: whether an outline is not enough, whose weights have no bytes.

        Raises:
            BaseModelNotHereError: it is being fetched, or cannot be.
        """
        model_id, sha256 = installed.id, installed.sha256
        found = self.catalogue.find_version(model_id, sha256, needs_weights=needs_weights)
        if found is not None:
            return found[1].absolute()
        copy = self.read(lambda session: StoredModels(session).find(model_id, sha256))
        if copy is None:
            raise BaseModelNotHereError(
                f"The base model {model_id} is neither on the machine that answers nor in the "
                f"store any more. Run: tunery models install {model_id}"
            )
        began_s: float | None = None

        def watch(progress: Progress) -> None:
            nonlocal began_s
            began_s = began_s or steady_s()
            # All requests that wait would keep all threads busy.
            must_leave = progress.is_waiting and needs_weights
            if steady_s() < began_s + MAX_FETCH_S and not must_leave:
                return
            here, total = progress.bytes / 1e9, progress.total_bytes / 1e9
            what = f"{here:.2f} of {total:.2f} GB are there"
            if progress.is_waiting:
                what = "another process fetches it"
            raise BaseModelNotHereError(
                f"The base model {model_id} is being fetched to the machine that answers: {what}. "
                "Send the request again in a moment."
            )

        try:
            return fetch_model(
                *(copy, self.catalogue, self._store, watch),
                spare_bytes=self._spare_bytes,
                needs_weights=needs_weights,
            ).absolute()
        except ModelUnavailableError as error:
            logger.warning("%s", error)
            raise BaseModelNotHereError(str(error)) from error
