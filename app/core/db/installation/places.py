"""Which stores an installation uses, as its database has it, and who may use which of them.

Decision 0059 says why this keeps every byte while the processes are given new settings one by one.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from app.core.errors import OperatorError


class WrongStoreError(OperatorError):
    """The settings name a store that is not this installation's. The message says what to set."""


class PreviousState(StrEnum):
    """What is known about the store that an installation moves away from."""

    OPEN = "open"
    """Processes with the old settings may still write to it."""
    CLOSED = "closed"
    """No row may name a blob that was put into it from now on."""
    COPIED = "copied"
    """It is not needed any more: the present store has every blob."""


@dataclass(frozen=True, slots=True)
class StorePlaces:
    """The ids of an installation's stores. Each store holds a marker with its id."""

    present: str | None
    """Store that blobs are put into. None before the first start."""
    previous: str | None = None
    """Store that the installation moves away from, or has moved away from."""
    previous_state: PreviousState | None = None
    target: str | None = None
    """Store that `tunery store copy` copies to, before the installation moves there."""
    moved_at: datetime | None = None
    """When the installation began to use the present store. None if it has never moved."""

    def may_write(self, store_id: str) -> bool:
        """Whether a row may name a blob that was put into this store."""
        is_open = self.previous_state is PreviousState.OPEN
        return store_id == self.present or (is_open and store_id == self.previous)

    @property
    def needed(self) -> set[str]:
        """The stores that a process must read, so that it misses no blob."""
        is_copied = self.previous_state in {None, PreviousState.COPIED}
        stores = {self.present} if is_copied else {self.present, self.previous}
        return {store_id for store_id in stores if store_id is not None}

    def closed(self) -> "StorePlaces":
        """The places once no process may write to the previous store."""
        is_open = self.previous_state is PreviousState.OPEN
        return replace(self, previous_state=PreviousState.CLOSED) if is_open else self

    def seen_by(self, present: str | None, previous: str | None, *, now: datetime) -> "StorePlaces":
        """The places once a process has started with these two stores. Mostly, they are the same.

        Args:
            present: id of the store that `TUNERY_STORE_URL` names; None if it has no marker.
            previous: id of the store that `TUNERY_STORE_PREVIOUS_URL` names; None if it has no
                marker, or if the setting is empty.
            now: the time.

        Raises:
            WrongStoreError: the process must not run with these stores.
        """
        if present is not None and present == self.present:
            if previous not in {None, self.previous}:
                raise WrongStoreError(
                    "TUNERY_STORE_PREVIOUS_URL names a store that the service has not come from. "
                    "Remove it, or set it as for the other processes of the service."
                )
            if self.needed <= {present, previous}:
                return self
            raise WrongStoreError(
                "The service is moving, and some files may still be only in its previous store. "
                "Set TUNERY_STORE_PREVIOUS_URL to that store until `tunery store copy` says that "
                "it can be removed."
            )
        if present is not None and present in {self.target, self.previous}:
            if previous == self.present:
                return StorePlaces(present, previous, PreviousState.OPEN, moved_at=now)
            raise WrongStoreError(
                "The service uses another store than this one, of TUNERY_STORE_URL or by default "
                "of the data directory. Use the settings of its other processes. To move it to "
                "this store, set TUNERY_STORE_PREVIOUS_URL to the store that it uses now."
            )
        raise WrongStoreError(
            "TUNERY_STORE_URL names a store that does not belong to this installation. Set it as "
            "for the other processes of the service. To move the service to another store, begin "
            "with `tunery store copy URL`: see docs/moving-stores.md."
        )
