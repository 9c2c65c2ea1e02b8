"""Refuses to work with a blob store or a signing key that is not the one of the database.

A worker on another machine whose settings are incomplete would otherwise find none of the bytes
that the database names, and fail every job. Decision 0059 says how processes follow a move to
another store without losing a byte.
"""

import logging
from dataclasses import dataclass, replace

from app.core.clock import utc_now
from app.core.db.base import Installation
from app.core.db.blob_keys import BlobKeyRepository, InstallationRepository
from app.core.db.installation.fence import fence
from app.core.db.installation.places import PreviousState, StorePlaces, WrongStoreError
from app.core.db.installation.repository import PlacesRepository
from app.core.db.migrate import newest_revision, read_revision
from app.core.db.session import Database, Session
from app.core.errors import OperatorError
from app.core.ids import IdPrefix, new_id
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.blob_store import BlobStore
from app.core.storage.guarded import GuardedBlobStore
from app.core.storage.marker import read_marker, write_marker
from app.core.storage.moving import MovingBlobStore
from app.core.storage.opening import open_store, open_stores

logger = logging.getLogger(__name__)


class WrongKeyError(OperatorError):
    """The signing key of this machine is not the one of the service."""


@dataclass(frozen=True, slots=True)
class StoreConnection:
    """The stores that a process uses, and what they are to its installation."""

    database: Database
    store: BlobStore
    """What the process reads, writes and deletes."""
    present: BlobStore
    previous: BlobStore | None
    """Store behind the present one. None if the settings name none, or if it is not needed."""
    ids: frozenset[str]

    def is_moved(self) -> bool:
        """Whether the installation has moved away, so that this process may miss blobs.

        Raises:
            DatabaseBusyError: nobody knows at the moment.
        """
        return not read_places(self.database).needed <= self.ids


def connect_store(settings: Settings, database: Database, *, may_move: bool) -> StoreConnection:
    """Open the stores that the settings name, and make sure that they are the installation's.

    The first process of an installation gives its store an id. The first one whose settings name a
    new store and the previous one moves the installation, if it may.

    Args:
        settings: those of this process.
        database: with the newest schema. From now on it refuses rows that name a blob in a store
            which the installation does not read any more.
        may_move: whether this process may move the installation. Only processes that stay may.

    Raises:
        WrongStoreError: the settings name another store than the installation's.
        StoreAwayError: a store does not answer.
        StoreSetUpError: the library for S3 is not installed.
    """
    present, previous = open_stores(settings)
    if read_places(database).present is None:
        require_right_store(database, present)
    present_id = read_marker(present)
    previous_id = None if previous is None else read_marker(previous)
    places = _agree(database, present_id, previous_id, may_move=may_move)
    if previous_id is None or previous_id != places.previous:
        previous = None  # emptied, now that all is copied
    ids = frozenset(each for each in (present_id, previous_id) if each is not None)
    fence(database, present_id or "")
    store = present if previous is None else MovingBlobStore(present, previous)
    connection = StoreConnection(database, store, present, previous, ids)
    return replace(connection, store=GuardedBlobStore(store, connection.is_moved))


def open_own_store(settings: Settings, database: Database) -> BlobStore:
    """The store for a command that looks at it and must change nothing.

    A store of an installation that was never started with this version is not checked.

    Raises:
        WrongStoreError: the settings name another store than the installation's.
        StoreAwayError: a store does not answer.
        StoreSetUpError: the library for S3 is not installed.
    """
    with database.reading() as session:
        is_current = read_revision(session) == newest_revision()
    if not is_current or read_places(database).present is None:
        return open_store(settings)
    return connect_store(settings, database, may_move=False).store


def read_places(database: Database) -> StorePlaces:
    """What the database knows about the stores of the installation.

    Raises:
        DatabaseBusyError: the database is busy or away.
    """
    with database.reading() as session:
        return PlacesRepository(session).read()


def change_places(database: Database, before: StorePlaces, after: StorePlaces) -> bool:
    """Write down what has changed. Returns False if somebody else has changed it before.

    Raises:
        DatabaseBusyError: the database is busy or away.
    """
    if before == after:
        return True
    return database.transact(lambda session: PlacesRepository(session).change(before, after))


def _agree(
    database: Database, present_id: str | None, previous_id: str | None, *, may_move: bool
) -> StorePlaces:
    """The places once this process has seen the markers of its stores."""
    while True:
        before = read_places(database)
        after = before.seen_by(present_id, previous_id, now=utc_now())
        if after != before and not may_move:
            raise WrongStoreError(
                "The settings move the service to another store, and no process of it has started "
                "with them yet. Restart the API or a worker with them first."
            )
        if change_places(database, before, after):
            break
    if after != before:
        logger.warning("the service has moved to another store", extra={"store": after.present})
    elif previous_id is not None and after.previous_state is PreviousState.COPIED:
        logger.warning("TUNERY_STORE_PREVIOUS_URL is not needed any more and can be removed")
    return after


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
