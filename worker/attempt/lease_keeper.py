"""Keeps the lease of one attempt: renews it, and retries transactions for as long as it lasts."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from app.core.abilities.ability import Ability
from app.core.base_models import Catalogue
from app.core.clock import Clock, steady_s, utc_now
from app.core.db.repositories.leases import Lease, LeaseRepository, RequestedAction
from app.core.db.session import Database, Session
from app.core.errors import DatabaseBusyError, LeaseLostError, StorageFullError
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from worker.attempt.store_doubts import StoreDoubts
from worker.launch.launcher import Launcher, Signal
from worker.presence import Pace

T = TypeVar("T")

RENEWALS = 6
"""How many times a lease is renewed before it would expire."""

LEASE_MARGIN = 0.25
"""Fraction of the lease that is left when a worker that cannot renew it gives the job up."""

_MAX_POLL_INTERVAL_S = 2.0
"""A cancel may take 5 seconds."""

RETRY_S = 0.2
"""Pause between two tries of a transaction, in seconds."""

TRANSIENT_ERRORS = (DatabaseBusyError, StorageFullError)
"""The database has done nothing, and may do it a moment later."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Settings, services and intervals that all attempts of a worker share."""

    settings: Settings
    database: Database
    store: BlobStore
    catalogue: Catalogue
    launcher: Launcher
    clock: Clock = utc_now
    ability: Ability | None = None
    """What the worker can do. None for one that takes any job and stores no plans."""
    cancel_poll_interval_s: float = 0.5
    """Interval at which the database is asked what the user wants. A cancel may take 5 seconds."""
    flush_interval_s: float = 1.0
    """Minimum interval between two writes of steps: a commit takes longer than a small step."""
    progress_interval_s: float = 30.0
    """Minimum interval between two lines of a job's progress in the worker's log."""
    doubts: StoreDoubts = field(default_factory=StoreDoubts)
    pace: Pace = field(default_factory=Pace)
    """Stretches what is asked all the time, where many workers share the database."""

    def poll_interval_s(self) -> float:
        """Seconds until the next look what the user wants, and whether the lease must be renewed.

        Many workers look less often. In the time of one renewal each still looks twice.
        """
        usual_s = self.cancel_poll_interval_s
        most_s = min(_MAX_POLL_INTERVAL_S, self.settings.lease_s / RENEWALS / 2)
        return self.pace.always_s(usual_s, most_s=most_s)


class Leases(Protocol):
    """The queries on a lease: of a `LeaseRepository` to train, of another one to do otherwise."""

    def renew(self, lease: Lease, *, until: datetime) -> RequestedAction: ...

    def read_requested_action(self, lease: Lease) -> RequestedAction: ...


class NotWantedError(Exception):
    """The user or the worker wants the job to stop before its child has begun.

    Args:
        is_stopping: whether the worker is told to stop.
    """

    def __init__(self, *, is_stopping: bool) -> None:
        super().__init__("The job is to stop.")
        self.is_stopping = is_stopping


class LeaseKeeper:
    """The lease of one attempt. Two threads use it: one relays events, the other polls.

    Attributes:
        requested_action: what the user had asked the job to do when the database was last polled.

    Args:
        stop_at_s: returns when a worker that is told to stop must have left the job, by `steady_s`;
            None while it may go on.
        leases: makes the queries on the lease in a session.
    """

    def __init__(
        self,
        lease: Lease,
        resources: Resources,
        stop_at_s: Callable[[], float | None],
        leases: Callable[[Session], Leases] = LeaseRepository,
    ) -> None:
        self.lease = lease
        self._leases = leases
        self.requested_action = RequestedAction.CONTINUE
        self._database = resources.database
        self._clock = resources.clock
        self._lease_s = resources.settings.lease_s
        self._stop_at_s = stop_at_s
        self._is_lost = False
        self._renewed_s = lease.claimed_s
        self._stop_grace_s = resources.settings.stop_grace_s
        self._over_at_s = math.inf

    @property
    def is_stopping(self) -> bool:
        """Whether the worker is told to stop."""
        return self._stop_at_s() is not None

    @property
    def is_over_time(self) -> bool:
        """Whether the job has trained for as long as its project allows."""
        return steady_s() > self._over_at_s

    def limit_to(self, seconds: float) -> None:
        """Let the job train for so many seconds more, and then save and stop."""
        self._over_at_s = steady_s() + seconds

    @property
    def is_lost(self) -> bool:
        """Whether another worker may have the job: it was taken over, or not renewed in time."""
        is_late = steady_s() - self._renewed_s > self._lease_s * (1 - LEASE_MARGIN)
        self._is_lost = self._is_lost or is_late
        return self._is_lost

    def require(self) -> None:
        """Check that the job is still this attempt's.

        Raises:
            LeaseLostError: the lease is lost.
        """
        if self.is_lost:
            raise LeaseLostError(self.lease.job_id, self.lease.attempt)

    def require_wanted(self) -> None:
        """Check that the job is this attempt's, and that it is to go on.

        Raises:
            LeaseLostError: the lease is lost.
            NotWantedError: it is to stop.
        """
        self.require()
        if self.requested_signal() is not Signal.CONTINUE:
            raise NotWantedError(is_stopping=self.is_stopping)

    def requested_signal(self) -> Signal:
        """Return what the training process is to do. Returns at once."""
        if self.is_lost or self.requested_action is RequestedAction.CANCEL:
            return Signal.KILL
        if steady_s() > min(self._stop_at_s() or math.inf, self._over_at_s + self._stop_grace_s):
            return Signal.KILL
        is_pausing = self.requested_action is RequestedAction.PAUSE
        must_stop = self.is_stopping or self.is_over_time or is_pausing
        return Signal.SAVE_AND_STOP if must_stop else Signal.CONTINUE

    def poll(self) -> None:
        """Read what the user has asked the job to do, and renew the lease when that is due.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            DatabaseBusyError, StorageFullError: the database cannot be used at the moment.
        """
        if self._is_lost:  # given up once, the job may be another worker's any moment
            raise LeaseLostError(self.lease.job_id, self.lease.attempt)
        now_s = steady_s()
        is_due = now_s - self._renewed_s >= self._lease_s / RENEWALS
        try:
            with self._database.writing() if is_due else self._database.reading() as session:
                leases = self._leases(session)
                if is_due:
                    until = self._clock() + timedelta(seconds=self._lease_s)
                    self.requested_action = leases.renew(self.lease, until=until)
                else:
                    self.requested_action = leases.read_requested_action(self.lease)
        except LeaseLostError:
            self._is_lost = True
            raise
        if is_due:
            self._renewed_s = now_s

    def read(self, act: Callable[[Session], T]) -> T:
        """Read from the database; retry as `transact` does."""
        return self._retry(self._database.reading, act)

    def transact(self, act: Callable[[Session], T]) -> T:
        """Run one transaction. While the lease lasts, repeat it when the database refuses it.

        Args:
            act: may be called several times, so it must have no effect outside the transaction.

        Raises:
            LeaseLostError: the job is no longer this attempt's, or its lease is nearly over.
            OutcomeUnknownError: the database was lost in the commit.
        """
        return self._retry(self._database.writing, act)

    def _retry(
        self,
        open_session: Callable[[], AbstractContextManager[Session]],
        act: Callable[[Session], T],
    ) -> T:
        while True:
            try:
                with open_session() as session:
                    return act(session)
            except TRANSIENT_ERRORS:
                if self.is_lost or steady_s() > (self._stop_at_s() or math.inf):
                    raise LeaseLostError(self.lease.job_id, self.lease.attempt) from None
                time.sleep(RETRY_S)  # a database that cannot be reached refuses at once
