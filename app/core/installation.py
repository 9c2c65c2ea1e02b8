"""Makes sure that a process uses the stores of its installation, and follows a move between them.

Decision 0059 says why no byte is lost while processes are given new settings one after the other.
"""

import logging
import secrets
from dataclasses import dataclass, replace

from app.core.clock import utc_now
from app.core.db.installation.fence import fence
from app.core.db.installation.places import PreviousState, StorePlaces, WrongStoreError
from app.core.db.installation.repository import InstallationRepository
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.guarded import GuardedBlobStore
from app.core.storage.marker import read_marker, write_marker
from app.core.storage.moving import MovingBlobStore
from app.core.storage.opening import open_stores

logger = logging.getLogger(__name__)


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
        _make_first_marker(database, present, is_own=not settings.store_url)
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


def read_places(database: Database) -> StorePlaces:
    """What the database knows about the stores of the installation.

    Raises:
        DatabaseBusyError: the database is busy or away.
    """
    with database.reading() as session:
        return InstallationRepository(session).read_places()


def change_places(database: Database, before: StorePlaces, after: StorePlaces) -> bool:
    """Write down what has changed. Returns False if somebody else has changed it before.

    Raises:
        DatabaseBusyError: the database is busy or away.
    """
    if before == after:
        return True
    return database.transact(
        lambda session: InstallationRepository(session).write_places(before, after)
    )


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


def _make_first_marker(database: Database, store: BlobStore, *, is_own: bool) -> None:
    """Give the store of a new installation its id.

    The database knows the id before the store has it: after a crash in between, the next start
    goes on with the same id.

    Args:
        database: that of the installation.
        store: its store.
        is_own: whether it is the directory that earlier versions have filled as well.
    """
    before = read_places(database)
    if before.target is None:
        if read_marker(store) is not None:
            raise WrongStoreError(
                "TUNERY_STORE_URL names a store that belongs to another installation, and this "
                "database is new. Name an empty place, such as another prefix of the bucket. If "
                "the database was lost, restore a backup of it."
            )
        if not is_own and next(iter(store.list_all()), None) is not None:
            raise WrongStoreError(
                "TUNERY_STORE_URL names a store that is not empty and has no marker of Tunery. "
                "Name an empty place, such as another prefix of the bucket."
            )
        change_places(database, before, replace(before, target=secrets.token_hex(16)))
        before = read_places(database)
    if before.present is None and before.target is not None:
        if read_marker(store) is None:
            write_marker(store, before.target)
        change_places(database, before, replace(before, present=before.target, target=None))
