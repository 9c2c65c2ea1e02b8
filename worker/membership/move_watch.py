"""Ends a worker process once its installation has moved to a store that it does not know."""

import logging
import os
import signal
from typing import ClassVar

from app.core.db.installation.places import WrongStoreError
from app.core.errors import DatabaseBusyError, StoreMovedError
from app.core.installation import StoreConnection

logger = logging.getLogger(__name__)


class MoveWatch:
    """Asks the database whether the installation has moved.

    If it has, the process is told to stop, as by its operator: it saves its running jobs and puts
    them back.
    """

    INTERVAL_S: ClassVar[float] = 1.0
    """Interval between two questions, in seconds. Until then the worker may take a job, miss one
    of its files and put it back."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._has_moved = False

    def look(self) -> None:
        """Tell this process to stop, once, if the installation has moved."""
        try:
            has_moved = self._connection.is_moved()
        except DatabaseBusyError:
            return
        if has_moved and not self._has_moved:
            self._has_moved = True
            logger.error("%s", StoreMovedError().for_operator)
            os.kill(os.getpid(), signal.SIGTERM)

    def require_no_move(self) -> None:
        """Make sure that the process was not stopped by a move.

        Raises:
            WrongStoreError: it was, and the next start needs other settings.
        """
        if self._has_moved:
            raise WrongStoreError(StoreMovedError().for_operator)
