"""Refuses rows that name a blob in a store which the installation does not read any more.

A transaction that names a new blob locks the row of the installation for sharing. To close a store,
`tunery store copy` changes that row, and so waits for every such transaction: see decision 0059.
"""

from sqlalchemy import inspect

from app.core.db.check_tables import Task
from app.core.db.installation.repository import PlacesRepository
from app.core.db.session import Database, Session
from app.core.db.tables import File, SavedState, UploadPart
from app.core.db.worker_tables import StoredModel
from app.core.errors import StoreMovedError

_STORE_ID = "store_id"
"""Key in the `info` of a session that holds the id of the store that this process puts into."""
_IS_CHECKED = "store_is_checked"


def fence(database: Database, store_id: str) -> None:
    """Let transactions of this process name only blobs that were put into this store.

    They raise StoreMovedError once the installation does not read the store any more.
    """
    database.before_flush(_check_rows, {_STORE_ID: store_id})


def require_store(session: Session) -> None:
    """Check that rows may name what this process puts, until the end of the transaction.

    A transaction need not call this if the session itself adds or changes the row.

    Raises:
        StoreMovedError: they may not.
    """
    store_id = session.info.get(_STORE_ID)
    if store_id is None or session.info.get(_IS_CHECKED):
        return
    if not PlacesRepository(session).read(is_shared=True).may_write(store_id):
        raise StoreMovedError
    session.info[_IS_CHECKED] = True


def _check_rows(session: Session) -> None:
    named = File | SavedState | StoredModel | UploadPart
    has_new = any(isinstance(row, named) for row in session.new)
    if has_new or any(map(_gets_files, session.dirty)):
        require_store(session)


def _gets_files(row: object) -> bool:
    return isinstance(row, Task) and inspect(row).attrs.files.history.has_changes()
