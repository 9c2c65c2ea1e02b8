"""What a route may ask for."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request

from app.core.base_models import Catalogue
from app.core.clock import utc_now
from app.core.db.session import Database, Session
from app.core.disk import Ballast
from app.core.errors import InvalidRequestError, StorageFullError
from app.core.ids import IdPrefix
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """What the application was built from; one for all requests."""

    settings: Settings
    database: Database
    store: BlobStore
    catalogue: Catalogue
    ballast: Ballast

    def make_room(self, act: Callable[[Session], T]) -> T:
        """Do what frees space, in a transaction of its own, also when no space is left for that.

        On a full disk `act` is called a second time, after the ballast is gone: all that the first
        call did was rolled back.

        Raises:
            StorageFullError: there was no ballast, or it was not enough.
        """
        try:
            with self.database.writing() as session:
                return act(session)
        except StorageFullError:
            if not self.ballast.release():
                raise
        with self.database.writing() as session:
            return act(session)

    def free(self, blob_keys: Iterable[str]) -> None:
        """Give their bytes back, once the rows that named them are gone and that is committed.

        A crash on the way leaves bytes that nothing names, never a name without bytes.
        """
        for key in blob_keys:
            self.store.delete(key)


async def _services(request: Request) -> Services:  # at once, not in another thread
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(_services)]


def _open_read(services: ServicesDep) -> Iterator[Session]:
    with services.database.reading() as session:
        yield session


def _open_write(services: ServicesDep) -> Iterator[Session]:
    """One request is one transaction: commit when the route returns, roll back when it raises."""
    with services.database.writing() as session:
        yield session


# scope="function": commit before the response leaves, so a 2xx is a promise kept.
ReadDep = Annotated[Session, Depends(_open_read, scope="function")]
WriteDep = Annotated[Session, Depends(_open_write, scope="function")]
Now = Annotated[datetime, Depends(utc_now)]


class Cursor:
    """The query parameter `after` of a list whose items have ids with this prefix."""

    def __init__(self, prefix: IdPrefix) -> None:
        self._prefix = prefix

    async def __call__(
        self, after: Annotated[str | None, Query(description="Id of the last item seen.")] = None
    ) -> str | None:
        if after and not after.startswith(self._prefix):
            raise InvalidRequestError(
                f"'after' must be the id of an item of this list; they start with {self._prefix}",
                code="invalid_cursor",
                param="after",
            )
        return after or None
