"""Refuses to work with a blob store or a signing key that is not the one of the database.

A worker on another machine whose settings are incomplete would otherwise find none of the bytes
that the database names, and fail every job.
"""

from app.core.db.base import Installation
from app.core.db.blob_keys import BlobKeyRepository, InstallationRepository
from app.core.db.session import Database, Session
from app.core.errors import OperatorError
from app.core.ids import IdPrefix, new_id
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from app.core.storage.marker import read_marker, write_marker


class WrongStoreError(OperatorError):
    """The blob store belongs to another database, or to none."""


class WrongKeyError(OperatorError):
    """The signing key of this machine is not the one of the service."""


def require_right_store(database: Database, store: BlobStore) -> None:
    """Check that the store is the one of the database. The first start makes it so.

    Several processes may start at once, and any may be killed: the database decides on an id, and
    then everybody writes the same marker until one has seen it in the store.

    Raises:
        WrongStoreError: it is not.
        StoreAwayError: the store does not answer, or refuses.
    """
    marker = read_marker(store)  # before the row: whoever writes a marker has written the row
    row = database.read(_read_row)
    if row.store_id is None:
        if marker is not None:
            raise _wrong_store(store, "It belongs to another database, and this one has no store.")
        _require_blobs(database, store)
        proposed = new_id(IdPrefix.STORE)
        row = database.transact(lambda session: _propose(session, proposed))
    assert row.store_id is not None  # noqa: S101 - it was proposed
    if marker is None and not row.is_store_marked:
        write_marker(store, row.store_id)
    if marker != row.store_id:
        marker = read_marker(store)
    if marker is None:
        raise _wrong_store(store, "It is empty or was emptied, and the database has another one.")
    if marker != row.store_id:
        raise _wrong_store(store, "It belongs to another database.")
    if not row.is_store_marked:
        database.transact(lambda session: InstallationRepository(session).mark_store(marker))


def require_right_key(database: Database, keys: SigningKeys) -> None:
    """Check that this machine signs with the service's key. The first start makes it.

    Raises:
        WrongKeyError: it has another key, or none.
        SigningKeyError: its key is damaged.
    """
    known = [key.id for key in keys.list_public()]
    expected = database.read(_read_row).signing_key
    if expected is not None and expected not in known:
        raise WrongKeyError(
            "This machine does not have the key that the service signs with. Copy the directory "
            "'signing' from the data directory of a machine where the service runs to the data "
            "directory of this one."
        )
    present = keys.ensure().id
    if present != expected:  # the first start, or the key was rotated
        database.transact(lambda session: InstallationRepository(session).set_signing_key(present))


def _read_row(session: Session) -> Installation:
    return InstallationRepository(session).read()


def _propose(session: Session, store_id: str) -> Installation:
    installation = InstallationRepository(session)
    installation.propose_store(store_id)
    return installation.read()


def _require_blobs(database: Database, store: BlobStore) -> None:
    """Do not make an empty store that of a database which names blobs."""
    names_any = database.read(lambda session: BlobKeyRepository(session).names_any())
    if names_any and next(store.list_all(), None) is None:
        raise _wrong_store(store, "It is empty, and the database has files.")


def _wrong_store(store: BlobStore, why: str) -> WrongStoreError:
    return WrongStoreError(
        f"The blob store {store} is not the one of this database. {why} TUNERY_STORE_URL must be "
        "the same for every process; docs/stores.md explains how to move to another store."
    )
