"""Checks the blob store: whether it answers, and what its server does."""

from collections.abc import Iterator
from contextlib import suppress

from app.core.errors import BlobNotFoundError
from app.core.settings import Settings
from app.core.storage.blob_store import RESERVED
from app.maintenance.findings import Finding, Level, Patient


def describe_store(settings: Settings) -> str:
    """Where blobs are, without a secret: `local disk`, or the URL of the store."""
    return settings.store_url or "local disk"


def check_store_answers(patient: Patient) -> Iterator[Finding]:
    """Ask for a blob that no store has. A store that is away fails the check."""
    with suppress(BlobNotFoundError):
        patient.store.open(f"{RESERVED}no-such-blob").close()
    yield Finding("store", Level.OK, describe_store(patient.settings))


def check_store(patient: Patient) -> Iterator[Finding]:
    """Put, read, list and delete a blob. A store that is away fails the check."""
    found = patient.store.probe_conditions()
    where = describe_store(patient.settings)
    if found is None:
        yield Finding("store", Level.OK, where)
        return
    needed = {"ranged reads": found.reads_ranges, "lists": found.lists, "deletions": found.deletes}
    missing = [name for name, works in needed.items() if not works]
    if missing:
        message = f"{where} does not do what Tunery needs: {', '.join(missing)}"
        yield Finding("store", Level.BAD, message, advice="Use another server of S3.")
        return
    honours = {"If-None-Match": found.creates_once, "If-Match": found.refuses_overwriting}
    honoured = [name for name, works in honours.items() if works]
    message = f"{where} answers, and honours {' and '.join(honoured) or 'no conditions'}"
    yield Finding("store", Level.OK, f"{message}. Tunery needs none: every key is used once.")
