"""Reads and changes the row of the installation."""

from sqlalchemy import select

from app.core.db.base import Repository
from app.core.db.installation.places import PreviousState, StorePlaces
from app.core.db.installation.tables import ONLY_ID, Installation

_THE_ROW = select(Installation).where(Installation.id == ONLY_ID)


class InstallationRepository(Repository):
    """The one row of the table `installation`."""

    def get(self, *, is_shared: bool = False) -> Installation:
        """Return the row.

        Args:
            is_shared: lock the row against changes until the end of the transaction. Other
                transactions can lock it in the same way.
        """
        query = _THE_ROW.with_for_update(read=True) if is_shared else _THE_ROW
        return self._session.scalars(query).one()

    def hold(self) -> Installation:
        """Return the row, locked until the end of the transaction."""
        return self._session.scalars(_THE_ROW.with_for_update()).one()

    def read_places(self, *, is_shared: bool = False) -> StorePlaces:
        """Return the ids of the stores.

        Args:
            is_shared: as in `get`.
        """
        return _places_of(self.get(is_shared=is_shared))

    def write_places(self, before: StorePlaces, after: StorePlaces) -> bool:
        """Change the ids of the stores. Returns False if they are not as `before` any more."""
        row = self.hold()
        if _places_of(row) != before:
            return False
        row.store_id, row.target_store_id = after.present, after.target
        row.previous_store_id, row.previous_state = after.previous, after.previous_state
        row.moved_at = after.moved_at
        return True


def _places_of(row: Installation) -> StorePlaces:
    return StorePlaces(
        present=row.store_id,
        previous=row.previous_store_id,
        previous_state=None if row.previous_state is None else PreviousState(row.previous_state),
        target=row.target_store_id,
        moved_at=row.moved_at,
    )
