"""Keeps installed base models in a store that other machines reach, and takes them from there."""

import logging
import secrets
from datetime import datetime
from pathlib import Path

from app.core.base_models import RECORD_NAME, Catalogue, CatalogueEntry, InstalledModel
from app.core.db.blob_keys import NamedBlob
from app.core.db.repositories.base_models.stored import StoredCopy, StoredModels
from app.core.db.session import Database
from app.core.errors import OutcomeUnknownError
from app.core.machine import durable
from app.core.manifest import sha256_of
from app.core.storage.blob_store import BlobStore, delete_blobs
from app.core.stored_models.fetching import fetch_model
from app.core.stored_models.lookup import read_files
from worker.model_store.errors import InstallError

logger = logging.getLogger(__name__)


def fetch_installed(
    entry: CatalogueEntry,
    catalogue: Catalogue,
    database: Database,
    store: BlobStore,
    *,
    spare_bytes: int,
) -> None:
    """Fetch a base model from the store, if it is there and not on this machine.

    Raises:
        ModelUnavailableError: it cannot be fetched.
    """
    copy = database.read(lambda session: StoredModels(session).find(entry.id))
    if copy is None or catalogue.directory(entry.id).exists():
        return
    logger.info("fetching %s from the store: %.2f GB", entry.id, copy.bytes / 1e9)
    fetch_model(copy, catalogue, store, lambda _: None, spare_bytes=spare_bytes)


def keep_in_store(
    installed: InstalledModel,
    directory: Path,
    database: Database,
    store: BlobStore,
    *,
    now: datetime,
) -> None:
    """Put the files of an installed base model into the store, unless they are there.

    Raises:
        InstallError: a file is not the one that was installed.
    """
    if database.read(lambda it: StoredModels(it).find(installed.id, installed.sha256)):
        logger.info("%s is in the store", installed.id)
        return
    logger.info("storing %s, so that workers of other machines can fetch it", installed.id)
    # A key of its own for each try: a concurrent removal then never deletes what this one names.
    prefix = f"models/{installed.sha256}/{secrets.token_hex(8)}"
    owner = (installed.id, installed.sha256)
    files: dict[str, NamedBlob] = {}
    is_kept = False
    try:
        for name in (*sorted(installed.files), RECORD_NAME):
            sha256 = sha256_of(directory / name)
            _require_same(name, sha256, installed)
            size = (directory / name).stat().st_size
            files[name] = NamedBlob(f"{prefix}/{name}", size, sha256, model=owner)
            _put(store, files[name].key, directory / name)
        copy = StoredCopy(installed, files, read_files(directory).architecture, now)
        is_kept = database.transact(lambda session: StoredModels(session).add(copy))
    except OutcomeUnknownError:
        is_kept = True  # the row may be there
        raise
    finally:
        if not is_kept:  # it failed, or another machine was faster
            delete_blobs(store, [file.key for file in files.values()])
    logger.info("%s is in the store: %.2f GB", installed.id, copy.bytes / 1e9)


def _require_same(name: str, sha256: str, installed: InstalledModel) -> None:
    if sha256 != installed.files.get(name, sha256):
        raise InstallError(
            f"{name} was changed after the installation. Remove the model with `tunery models "
            f"remove {installed.id}` and install it again."
        )


def _put(store: BlobStore, key: str, path: Path) -> None:
    scratch = store.scratch_file()
    try:
        durable.link_or_copy(path.resolve(), scratch, may_link=True)
        store.put(key, scratch)
    finally:
        scratch.unlink(missing_ok=True)
