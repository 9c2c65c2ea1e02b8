"""Reads and changes what the row of the installation says about its stores."""

from sqlalchemy import select

from app.core.db.base import Installation, Repository
from app.core.db.installation.places import PreviousState, StorePlaces


class PlacesRepository(Repository):
    """The stores of the installation."""

    def read(self, *, is_shared: bool = False) -> StorePlaces:
        """Return the ids of the stores.

        Args:
            is_shared: lock the row against changes until the end of the transaction. Other
                transactions can lock it in the same way.
        """
        query = select(Installation)
        query = query.with_for_update(read=True) if is_shared else query
        return _places_of(self._session.scalars(query).one())

    def change(self, before: StorePlaces, after: StorePlaces) -> bool:
        """Change the ids of the stores. Returns False if they are not as `before` any more."""
        row = self._session.scalars(select(Installation).with_for_update()).one()
        if _places_of(row) != before:
            return False
        row.store_id, row.target_store_id = after.present, after.target
        row.previous_store_id, row.previous_state = after.previous, after.previous_state
        row.moved_at = after.moved_at
        return True


def _places_of(row: Installation) -> StorePlaces:
    return StorePlaces(
        present=row.store_id if row.is_store_marked else None,
        previous=row.previous_store_id,
        previous_state=None if row.previous_state is None else PreviousState(row.previous_state),
        target=row.target_store_id,
        moved_at=row.moved_at,
    )
