"""Removes an installed base model."""

import shutil
from dataclasses import dataclass

from app.core.base_models import Catalogue, CatalogueEntry
from app.core.db.inspection import find_unfinished_job_on
from app.core.db.repositories.base_models.stored import StoredModels
from app.core.db.session import Database, Session
from app.core.machine import durable
from app.core.storage.blob_store import BlobStore, delete_blobs
from app.core.stored_models.lock import exclusive


class ModelInUseError(Exception):
    """An unfinished job needs the base model; the message names the job."""


@dataclass(frozen=True, slots=True)
class Removed:
    """Where a removed base model was."""

    was_here: bool
    """Whether this machine had it, or part of it."""
    was_stored: bool
    """Whether it was in the store."""


def remove_model(
    entry: CatalogueEntry, catalogue: Catalogue, database: Database, store: BlobStore | None
) -> Removed:
    """Free the disk space of a base model. Adapters that were tuned on it stay.

    Args:
        entry: the base model.
        catalogue: the base models of this machine.
        database: knows the jobs, and what is in the store.
        store: the store to remove it from as well. None to leave it there.

    Raises:
        ModelInUseError: a job that has not ended needs it.
        DatabaseBusyError: the database is too busy to tell.
    """

    def forget(session: Session) -> list[str]:
        job_id = find_unfinished_job_on(session, entry.id)
        if job_id is not None:
            raise ModelInUseError(f"Job {job_id} needs it. Cancel that job, or wait until it ends.")
        return [] if store is None else StoredModels(session).remove(entry.id)

    directory = catalogue.directory(entry.id)
    partial = directory.with_name(f".{entry.id}.partial")
    with exclusive(catalogue, entry.id):
        keys = database.transact(forget)
        others = directory.parent.glob(f"*{entry.id}@*")  # versions, outlines, unfinished fetches
        others = [path for path in others if path.name.lstrip(".").startswith(f"{entry.id}@")]
        leftovers = [path for path in (directory, partial, *others) if path.exists()]
        if directory.exists():
            # After this rename the model counts as not installed, even if the process dies.
            shutil.rmtree(partial, ignore_errors=True)
            directory.rename(partial)
            durable.sync(directory.parent)
        for path in (partial, *others):
            shutil.rmtree(path, ignore_errors=True)
    if store is not None:
        delete_blobs(store, keys)
    return Removed(was_here=bool(leftovers), was_stored=bool(keys))
