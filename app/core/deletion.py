"""Deletes rows and the bytes that they name, in the order that is safe.

The bytes are deleted once the transaction that deletes their rows is committed. A crash in between
leaves bytes that no row names, which `orphans` deletes later. The opposite order could leave rows
whose bytes are gone.
"""

from collections.abc import Callable, Iterable

from app.core.db.session import Session
from app.core.storage.blob_store import BlobStore

DeleteRows = Callable[[Session], list[str]]
"""Deletes rows in a transaction, and returns the keys of the blobs that they named."""


def delete_with_bytes(
    store: BlobStore, transact: Callable[[DeleteRows], list[str]], delete_rows: DeleteRows
) -> None:
    """Delete rows, then their bytes.

    Args:
        transact: runs a function in a transaction, commits it and returns the result.
    """
    delete_bytes(store, transact(delete_rows))


def delete_bytes(store: BlobStore, keys: Iterable[str]) -> None:
    """Delete the bytes of rows whose deletion is committed."""
    for key in keys:
        store.delete(key)
