"""Claim a job, make an attempt at it, ask again. No torch in this process.

A worker that finds no job to train checks the data of one.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from app.core.clock import steady_s
from app.core.compute_choices import training_memory
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.queue import Turns
from app.core.disk import has_room
from app.core.errors import DatabaseAwayError, DatabaseBusyError
from app.core.logging import log_context
from app.core.machine.memory import measure_memory
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.beside import PAUSE_AFTER_FAILURE_S
from worker.data_check.loop import DataChecker
from worker.launch.locks import TrainingSlots
from worker.presence import Presence, this_worker

logger = logging.getLogger(__name__)

MAX_POLL_INTERVAL_S = 5.0
"""Interval at which an idle worker asks for a job where very many do: one may be the only worker
that can run a job."""

SAVING_SHARE = 0.8
"""Fraction of the grace period of a worker that is told to stop in which its child may save. The
rest is for storing what was saved."""


class Worker:
    """Runs jobs one at a time until told to stop.

    Args:
        do_chores: called between jobs; see `Janitor.run_if_due`.
    """

    def __init__(self, worker_id: str, resources: Resources, do_chores: Callable[[], None]) -> None:
        settings = resources.settings
        self._worker_id = worker_id
        self._resources = resources
        self._settings = settings
        self._database = resources.database
        settings.workers_dir.mkdir(parents=True, exist_ok=True)
        self._preload_lock = settings.workers_dir / "preload.lock"
        self._slots = TrainingSlots(settings.workers_dir, settings.concurrency)
        self._do_chores = do_chores
        self._stopping = threading.Event()
        self._stop_at_s: float | None = None
        self._memory_bytes = training_memory(settings)
        self._checker = DataChecker(worker_id, resources, resources.launcher)
        self._presence = Presence(
            this_worker(worker_id),
            resources.database,
            clock=resources.clock,
            is_stopping=self._stopping.is_set,
            memory_bytes=self._memory_bytes,
            pace=resources.pace,
        )

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs. Save the present one, unless `at_once`, and put it back."""
        grace_s = 0.0 if at_once else self._settings.stop_grace_s * SAVING_SHARE
        self._stop_at_s = steady_s() + grace_s
        self._stopping.set()

    def run(self) -> None:
        with self._presence.keep():
            while not self._stopping.is_set():
                try:
                    idle_s = self.run_once()
                except DatabaseAwayError as error:
                    logger.warning("trying again: %s", error.for_operator)
                    idle_s = PAUSE_AFTER_FAILURE_S
                except DatabaseBusyError:
                    logger.warning("the database is busy; trying again")
                    idle_s = self._settings.poll_interval_s
                except Exception:  # its job, if any, is recovered once the lease has run out
                    logger.exception("the worker failed; trying again in a moment")
                    idle_s = PAUSE_AFTER_FAILURE_S
                self._stopping.wait(idle_s)

    def run_once(self) -> float:
        """Run or check at most one job. Returns seconds to wait before the next call."""
        self._do_chores()
        with self._slots.take() as may_train:
            lease = self._claim() if may_train and has_room(self._settings) else None
            if lease is not None:
                return self._attempt(lease)
            if may_train:
                idle_s = self._checker.check_small(lambda: self._stop_at_s)
                if idle_s is not None:
                    return idle_s
                is_busy = self._slots.is_any_other_taken
                self._resources.launcher.preload(self._preload_lock, is_busy=is_busy)
            return self._resources.pace.while_idle_s(
                self._settings.poll_interval_s, most_s=MAX_POLL_INTERVAL_S
            )

    def _claim(self) -> Lease | None:
        with self._database.reading() as session:
            if not Turns(session).is_any(now=self._resources.clock()):
                return None  # without keeping writers waiting just to find nothing
        with self._database.writing() as session:
            return LeaseRepository(session).claim(
                self._worker_id,
                now=self._resources.clock(),
                lease_for=timedelta(seconds=self._settings.lease_s),
                threads=self._settings.resolved_training_threads,
                memory=measure_memory().limited_to(self._memory_bytes),
            )

    def _attempt(self, lease: Lease) -> float:
        attempt = Attempt(lease, self._resources, stop_at_s=lambda: self._stop_at_s)
        job = {"job_id": lease.job_id, "attempt": lease.attempt, "project": lease.project_id}
        with log_context(**job):
            logger.info("job claimed")
            attempt.run()
        return PAUSE_AFTER_FAILURE_S if attempt.must_wait else 0.0
