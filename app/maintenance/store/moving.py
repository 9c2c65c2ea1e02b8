"""Moves an installation to another store: what may be copied where, and when the move is over."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from app.core.db.blob_keys import BlobKeyRepository, NamedBlob
from app.core.db.installation.places import PreviousState, StorePlaces
from app.core.db.session import Database
from app.core.disk import MIB
from app.core.errors import OperatorError
from app.core.installation import change_places, connect_store, read_places
from app.core.settings import Settings
from app.core.settings.store_urls import is_nested, parse_store_url
from app.core.storage.blob_store import BlobStore
from app.core.storage.marker import read_marker, write_marker
from app.core.storage.opening import open_store_at
from app.maintenance.store.copy_blobs import PARALLEL, Total, iterate_blobs, map_ahead, size_in


class CannotCopyError(OperatorError):
    """The command must not copy to this store. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """From where to where blobs are copied, and what the operator does next."""

    source: BlobStore
    target: BlobStore
    places: StorePlaces
    """What the database knew when the copy began."""
    next_step: str


def prepare_copy(settings: Settings, database: Database, url: str) -> CopyPlan:
    """Prepare a copy to a store that the service may move to later.

    A store that is new to the installation gets its id here.

    Raises:
        CannotCopyError: the service is moving already, or the store cannot be its next one.
        WrongStoreError: the settings are not those of the service.
        StoreAwayError: a store does not answer.
    """
    connection = connect_store(settings, database, may_move=False)
    places = read_places(database)
    if settings.store_previous_url or places.needed != {places.present}:
        raise CannotCopyError(
            "The service is still moving from its previous store. Finish that first: run `tunery "
            "store copy` without a URL, then remove TUNERY_STORE_PREVIOUS_URL."
        )
    source_url = settings.store_url or f"file://{settings.blobs_dir.absolute()}"
    try:
        if is_nested(parse_store_url(source_url), parse_store_url(url)):
            raise CannotCopyError(
                f"{url} and {source_url}, which the service uses, are one inside the other. Name "
                "a store beside it."
            )
        target = open_store_at(url, settings)
    except ValueError as error:
        raise CannotCopyError(f"The URL names no store: {error}.") from error
    target_id = read_marker(target)
    if target_id == places.present:
        raise CannotCopyError(f"{url} is the store that the service uses. Name another one.")
    if target_id is None:
        _require_empty(target, url)
        target_id = secrets.token_hex(16)
    elif target_id not in {places.target, places.previous}:
        raise CannotCopyError(
            f"{url} belongs to another installation, or was meant for a move that was given up. "
            "Name an empty store, such as another prefix of the bucket, or empty this one."
        )
    after = replace(places, target=target_id)
    if not change_places(database, places, after):
        raise CannotCopyError("The service has just moved to another store. Check its settings.")
    write_marker(target, target_id)
    next_step = (
        "Now restart every process of the service with these settings:\n"
        f"  TUNERY_STORE_URL={url}\n"
        f"  TUNERY_STORE_PREVIOUS_URL={source_url}\n"
        "Then run `tunery store copy` with the same settings."
    )
    return CopyPlan(connection.store, target, after, next_step)


def prepare_rest(settings: Settings, database: Database) -> CopyPlan:
    """Prepare the copy of what is only in the previous store, which is closed here.

    Raises:
        CannotCopyError: the service does not move.
        WrongStoreError: the settings are not those of the service.
        StoreAwayError: a store does not answer.
    """
    if not settings.store_previous_url:
        raise CannotCopyError(
            "Name the store to copy to, such as s3://bucket/prefix. After the service was "
            "restarted there, set TUNERY_STORE_PREVIOUS_URL as for the service, and run `tunery "
            "store copy` without a URL."
        )
    connection = connect_store(settings, database, may_move=False)
    next_step = (
        "The present store has every file. Remove TUNERY_STORE_PREVIOUS_URL and restart every "
        "process of the service. Then you can empty the previous store: see docs/moving-stores.md."
    )
    places = read_places(database)
    if connection.previous is None:
        return CopyPlan(connection.present, connection.present, places, next_step)
    closed = places.closed()
    if not change_places(database, places, closed):
        raise CannotCopyError("The service has just moved to another store. Check its settings.")
    return CopyPlan(connection.previous, connection.present, closed, next_step)


def finish_move(database: Database, plan: CopyPlan) -> None:
    """Write down that the previous store is not needed any more.

    Raises:
        CannotCopyError: the service has moved once more since the copy began.
    """
    if plan.places.previous_state in {None, PreviousState.COPIED}:
        return
    copied = replace(plan.places, previous_state=PreviousState.COPIED)
    if not change_places(database, plan.places, copied) and read_places(database) != copied:
        raise CannotCopyError("The service has moved once more meanwhile. Run the command again.")


def _require_empty(target: BlobStore, url: str) -> None:
    found = next(iter(target.list_all()), None)
    if found is not None:
        raise CannotCopyError(
            f"{url} is not empty and has no marker of Tunery: it holds {found.key}, for example. "
            "Name an empty store, such as another prefix of the bucket."
        )


@dataclass
class StoreStatus:
    """The stores of an installation, and where its blobs are."""

    url: str
    previous_url: str
    """Empty if the settings name no previous store."""
    previous_state: PreviousState | None
    moved_at: datetime | None
    named: Total = field(default_factory=Total)
    """Blobs that a row names."""
    present: Total = field(default_factory=Total)
    """Blobs in the present store, whether or not a row names them."""
    previous: Total = field(default_factory=Total)
    only_in_previous: Total = field(default_factory=Total)
    """Blobs that a row names and that the present store does not have with their size."""
    missing: int = 0
    """Number of blobs that no store has with their size."""

    @property
    def needs_previous(self) -> bool:
        """Whether the service must still read the previous store."""
        return self.previous_state in {PreviousState.OPEN, PreviousState.CLOSED}

    def describe(self) -> Iterator[str]:
        """Lines for the operator."""
        yield f"present store   {self.url}: {_describe(self.present)}"
        if self.previous_url:
            yield f"previous store  {self.previous_url}: {_describe(self.previous)}"
        yield f"in use          {_describe(self.named)}"
        if self.missing:
            yield f"missing         {self.missing:,} files. Run `tunery doctor` to see which."
        if self.needs_previous:
            yield f"to be copied    {_describe(self.only_in_previous)}"
            yield "Run `tunery store copy`. TUNERY_STORE_PREVIOUS_URL is still needed."
        elif self.previous_url:
            yield "TUNERY_STORE_PREVIOUS_URL can be removed, and the previous store emptied."
        else:
            yield "The service does not move."


def measure_stores(settings: Settings, database: Database) -> StoreStatus:
    """Count what is in the stores, and what is only in the previous one.

    Raises:
        WrongStoreError: the settings are not those of the service.
        StoreAwayError: a store does not answer.
    """
    connection = connect_store(settings, database, may_move=False)
    places = read_places(database)
    status = StoreStatus(
        url=settings.store_url or f"file://{settings.blobs_dir.absolute()}",
        previous_url=settings.store_previous_url,
        previous_state=places.previous_state,
        moved_at=places.moved_at,
    )
    previous = connection.previous
    status.present = _count(connection.present)
    if previous is not None:
        status.previous = _count(previous)

    def find(blob: NamedBlob) -> BlobStore | None:
        for store in filter(None, (connection.present, previous)):
            if size_in(store, blob.key) == blob.bytes:
                return store
        return None

    for blob, store in map_ahead(find, iterate_blobs(database), parallel=PARALLEL):
        status.named.add(blob.bytes)
        if store is None:
            with database.reading() as session:
                status.missing += BlobKeyRepository(session).still_names(blob)
        elif store is previous:
            status.only_in_previous.add(blob.bytes)
    return status


def _count(store: BlobStore) -> Total:
    total = Total()
    for blob in store.list_all():
        total.add(blob.bytes)
    return total


def _describe(total: Total) -> str:
    return f"{total.blobs:,} files, {total.bytes / MIB:,.1f} MiB"
