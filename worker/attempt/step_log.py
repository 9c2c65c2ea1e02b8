"""Writes the steps of a training process to the database, in batches."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from app.core.clock import steady_s
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Session
from app.core.job.loss_log import StepMetrics
from worker.attempt.lease_keeper import LeaseKeeper, Resources

logger = logging.getLogger(__name__)

MAX_WAITING = 2000
"""Number of steps that wait to be written at most. With one write a second, a child takes no more
steps a second than that."""

_MIN_ELAPSED_S = 0.001
"""Shortest training from which a speed is computed, in seconds."""

_MAX_ESTIMATE_S = 10 * 365 * 86_400.0
"""Longest time to the end of a job that is shown, in seconds."""


class StepLog:
    """Steps wait here until they are written. Two threads write them; one of them appends.

    Attributes:
        has_written: whether a step that this attempt took is in the database.
    """

    def __init__(self, keeper: LeaseKeeper, resources: Resources) -> None:
        self._keeper = keeper
        self._resources = resources
        self._lock = threading.Lock()
        self._waiting: list[StepMetrics] = []
        self.has_written = False
        self._first_step = self._total_steps = 0
        self._started_s = self._written_s = self._logged_s = steady_s()

    def begin(self, *, after_step: int) -> None:
        """The training process will resume after this step."""
        self._first_step = after_step

    def start(self, *, total_steps: int) -> None:
        """The training process begins its first step now."""
        self._total_steps = total_steps
        self._started_s = steady_s()

    def append(self, row: StepMetrics) -> None:
        """Add a step. A child that takes steps faster than they are written has to wait."""
        with self._lock:
            self._waiting.append(row)
            is_full = len(self._waiting) >= MAX_WAITING
        if is_full:
            time.sleep(max(0.0, self._written_s + self._resources.flush_interval_s - steady_s()))
            self.flush()

    def flush(self) -> None:
        """Write the waiting steps and their events. Retries while the lease lasts."""
        with self._lock:
            self._write(self._keeper.transact)

    def flush_if_due(self) -> None:
        """Write the waiting steps, unless that was done a moment ago or is being done.

        Raises:
            DatabaseBusyError, StorageFullError: nothing was written; the steps still wait.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if steady_s() - self._written_s >= self._resources.flush_interval_s:
                self._write(self._resources.database.transact)
        finally:
            self._lock.release()

    def _write(self, run: Callable[[Callable[[Session], None]], None]) -> None:
        if not self._waiting:
            return
        self._written_s = steady_s()
        run(self._record)
        last = self._waiting[-1]
        self.has_written = last.step > self._first_step
        self._waiting = []  # only now: a database that is busy has taken none of them
        self._log_progress(last)

    def _record(self, session: Session) -> None:
        lease, rows, last = self._keeper.lease, self._waiting, self._waiting[-1]
        now = self._resources.clock()
        LeaseRepository(session).record_steps(
            lease,
            rows,
            tokens_per_second=(
                last.tokens_seen / last.elapsed_s if last.elapsed_s > _MIN_ELAPSED_S else None
            ),
            estimated_finish_at=self._estimate_finish(last.step, now),
        )
        events = EventRepository(session, lease.project_id)
        worth_one = [row for row in rows if self._is_worth_an_event(row)]
        events.add_metrics(lease.job_id, worth_one, total_steps=self._total_steps, now=now)

    def _estimate_finish(self, step: int, now: datetime) -> datetime | None:
        if step == self._first_step:  # the base model was evaluated, and no step was taken
            return None
        seconds_per_step = (self._written_s - self._started_s) / (step - self._first_step)
        left_s = seconds_per_step * (self._total_steps - step)
        return now + timedelta(seconds=left_s) if left_s < _MAX_ESTIMATE_S else None

    def _log_progress(self, last: StepMetrics) -> None:
        if steady_s() - self._logged_s < self._resources.progress_interval_s:
            return
        self._logged_s = steady_s()
        context: dict[str, object] = {"job_id": self._keeper.lease.job_id}
        if last.train_loss is not None:
            context["train_loss"] = round(last.train_loss, 4)
        logger.info("step %d/%d", last.step, self._total_steps, extra=context)

    def _is_worth_an_event(self, row: StepMetrics) -> bool:
        is_due = row.step % self._keeper.lease.config.logging_steps == 0
        return is_due or row.step == self._total_steps or row.valid_loss is not None
