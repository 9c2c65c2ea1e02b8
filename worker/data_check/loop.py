"""Finds jobs whose data is to be checked, and checks it: between jobs, and beside training.

A worker that has nothing to train checks small files itself, in the process that has the libraries
in memory already. All others are checked beside training by one thread of each worker process. Its
child runs for a small part of the time while a job trains.
"""

import logging
import math
from collections.abc import Callable
from datetime import timedelta

from app.core.clock import steady_s
from app.core.db.repositories.data_checks import CheckLimits, DataCheckRepository
from app.core.db.repositories.leases import Lease
from app.core.disk import has_room
from app.core.job.loss_log import MAX_COUNT
from app.core.logging import log_context
from app.core.stored_models.reach import list_failed
from worker.attempt.lease_keeper import Resources
from worker.beside import PAUSE_AFTER_FAILURE_S
from worker.data_check.run import CheckRun
from worker.launch.launcher import Launcher

logger = logging.getLogger(__name__)

SMALL_BYTES = 16 * 1024 * 1024
"""Largest training file that is checked between jobs. It takes some seconds."""

PATIENCE = timedelta(seconds=2)
"""Age from which a job is checked beside training. An idle worker would have taken it by then."""

LONG_PATIENCE = timedelta(seconds=30)
"""The same while an idle worker checks one job after another."""

_TAKES_NEXT_S = 2.0
"""Time in which a worker that has checked a job takes the next one, or begins to train."""


class DataChecker:
    """Checks the data of one job after another.

    Args:
        worker_id: the worker that holds the leases.
        resources: what all attempts of the worker share.
        launcher: starts the children.
        are_others_at_it: whether an idle worker of this process has just checked a job. What is
            started beside it loads the libraries itself, which takes minutes once a job trains.
    """

    def __init__(
        self,
        worker_id: str,
        resources: Resources,
        launcher: Launcher,
        *,
        are_others_at_it: Callable[[], bool] = lambda: False,
    ) -> None:
        self._worker_id = worker_id
        self._resources = resources
        self._launcher = launcher
        self._are_others_at_it = are_others_at_it
        self._at_it_until_s = 0.0

    def is_at_it(self) -> bool:
        """Whether it checks a small file now, or has checked one a moment ago."""
        return steady_s() < self._at_it_until_s

    def is_any_small(self) -> bool:
        """Whether a job waits that `check_small` would take."""
        return self._is_any(self._limits(timedelta(), SMALL_BYTES))

    def check_small(self, stop_at_s: Callable[[], float | None]) -> float | None:
        """Check the data of a job, unless its file is large. For a worker with nothing to train.

        Args:
            stop_at_s: as in `CheckRun`.

        Returns:
            Seconds to wait before the next call. None if there was nothing to check.
        """
        self._at_it_until_s = math.inf
        idle_s: float | None = None
        try:
            idle_s = self._check(stop_at_s, age=timedelta(), max_bytes=SMALL_BYTES)
        finally:
            self._at_it_until_s = 0.0 if idle_s is None else steady_s() + _TAKES_NEXT_S
        return idle_s

    def check_any(self, stop_at_s: Callable[[], float | None]) -> float | None:
        """Check the data of a job that no idle worker has taken. Returns as `check_small`."""
        return self._check(stop_at_s, age=LONG_PATIENCE if self._are_others_at_it() else PATIENCE)

    def _check(
        self, stop_at_s: Callable[[], float | None], *, age: timedelta, max_bytes: int = MAX_COUNT
    ) -> float | None:
        lease = self._claim(self._limits(age, max_bytes))
        if lease is None:
            return None
        run = CheckRun(lease, self._resources, self._launcher, stop_at_s=stop_at_s)
        with log_context(job_id=lease.job_id, check=lease.attempt, project=lease.project_id):
            logger.info("check claimed")
            run.run()
        return PAUSE_AFTER_FAILURE_S if run.must_wait else 0.0

    def _limits(self, age: timedelta, max_bytes: int) -> CheckLimits:
        failed = list_failed(self._resources.catalogue)
        return CheckLimits(self._resources.clock() - age, max_bytes, failed)

    def _is_any(self, limits: CheckLimits) -> bool:
        with self._resources.database.reading() as session:
            return DataCheckRepository(session).is_any(limits, now=self._resources.clock())

    def _claim(self, limits: CheckLimits) -> Lease | None:
        resources = self._resources
        resources.doubts.settle(resources.store)
        # Without keeping writers waiting just to find nothing.
        if not self._is_any(limits) or not has_room(resources.settings):
            return None
        lease_for = timedelta(seconds=resources.settings.lease_s)
        with resources.database.writing() as session:
            return DataCheckRepository(session).claim(
                self._worker_id, limits, now=resources.clock(), lease_for=lease_for
            )
