"""Removes an installed base model."""

import shutil

from app.core.base_models import Catalogue, CatalogueEntry
from app.core.db.inspection import find_unfinished_job_on
from app.core.db.session import Database
from app.core.machine import durable
from app.core.stored_models.lock import exclusive


class ModelInUseError(Exception):
    """An unfinished job needs the base model; the message names the job."""


def remove_model(entry: CatalogueEntry, catalogue: Catalogue, database: Database) -> bool:
    """Free the disk space of a base model. Adapters that were tuned on it stay.

    Returns:
        Whether there was a model or an unfinished download.

    Raises:
        ModelInUseError: a job that has not ended needs it.
        DatabaseBusyError: the database is too busy to tell.
    """
    directory = catalogue.directory(entry.id)
    partial = directory.with_name(f".{entry.id}.partial")
    with exclusive(catalogue, entry.id):
        with database.reading() as session:
            job_id = find_unfinished_job_on(session, entry.id)
        if job_id is not None:
            raise ModelInUseError(f"Job {job_id} needs it. Cancel that job, or wait until it ends.")
        leftovers = [path for path in (directory, partial) if path.exists()]
        if directory.exists():
            # After this rename the model counts as not installed, even if the process dies.
            shutil.rmtree(partial, ignore_errors=True)
            directory.rename(partial)
            durable.sync(directory.parent)
        shutil.rmtree(partial, ignore_errors=True)
    return bool(leftovers)
