"""The time of the database's server, by which all machines decide whether a lease has ended."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from app.core.clock import Clock, steady_s, utc_now
from app.core.db.session import Database, Session, backend_of

logger = logging.getLogger(__name__)

MAX_SKEW = timedelta(seconds=5)
"""Difference between two clocks from which the log says so."""


def server_time(session: Session, *, local: datetime) -> datetime:
    """Time of the database's server. `local` for a database on this machine."""
    return backend_of(session).now(session) or local


class ServerClock:
    """Shows the time of the database's server, and this machine's own time with SQLite.

    It asks the server only in `synchronize`, and advances with this machine's steady clock.

    Args:
        local: time of this machine.
        steady: a steady clock of this machine, in seconds.
    """

    def __init__(self, local: Clock = utc_now, steady: Callable[[], float] = steady_s) -> None:
        self._local = local
        self._steady = steady
        self._asked: tuple[datetime, float] | None = None
        self._is_skewed = False

    def __call__(self) -> datetime:
        if self._asked is None:
            return self._local()
        time, at_s = self._asked
        return time + timedelta(seconds=self._steady() - at_s)

    def synchronize(self, session: Session) -> None:
        """Ask the server for its time. Logs once if this machine's clock is far from it."""
        before_s = self._steady()
        time = backend_of(session).now(session)
        if time is None:
            return
        self._asked = (time, before_s)  # ahead by at most the time that the answer took
        skew = self._local() - time
        is_skewed = abs(skew) > MAX_SKEW
        if is_skewed and not self._is_skewed:
            logger.warning(
                "the clock of this machine is %.0f s %s that of the database. Leases use the "
                "database's time; set this clock so that times in logs are right",
                abs(skew.total_seconds()),
                "ahead of" if skew > timedelta() else "behind",
            )
        self._is_skewed = is_skewed

    def read(self, database: Database) -> datetime:
        """Synchronize, and return the time.

        Raises:
            DatabaseBusyError: the server does not answer.
        """
        with database.reading() as session:
            self.synchronize(session)
        return self()
