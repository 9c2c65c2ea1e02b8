"""The steps an attempt's child reports, written to the database a batch at a time."""

import logging
import threading
from datetime import timedelta

from app.core.clock import Clock, steady_s
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.session import Database
from app.core.job.loss_log import StepMetrics

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 30.0
"""Minimum interval between two lines of a job's progress in the worker's log."""


class StepLog:
    """Two threads call in here: one appends what the child says, both write it down.

    Attributes:
        has_written: whether a step of this attempt is in the database.
    """

    def __init__(self, lease: Lease, *, database: Database, clock: Clock) -> None:
        self._lease = lease
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[StepMetrics] = []
        self.has_written = False
        self._first_step = self._total_steps = 0
        self._started_s = self._written_s = self._logged_s = steady_s()

    def begin(self, *, after_step: int) -> None:
        """The first step to come is the one after this."""
        self._first_step = after_step

    def start(self, *, total_steps: int) -> None:
        """The first step comes now."""
        self._total_steps = total_steps
        self._started_s = steady_s()

    def append(self, row: StepMetrics) -> None:
        with self._lock:
            self._waiting.append(row)

    def write(self, *, at_least_after_s: float = 0.0) -> None:
        """Write the steps that have come in since the last time, and the events they are due.

        Args:
            at_least_after_s: the last time; else nothing happens.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            DatabaseBusyError, StorageFullError: nothing was written; they wait for the next time.
        """
        with self._lock:
            if not self._waiting or steady_s() - self._written_s < at_least_after_s:
                return
            self._written_s = steady_s()
            rows, last = self._waiting, self._waiting[-1]
            seconds_a_step = (self._written_s - self._started_s) / (last.step - self._first_step)
            now = self._clock()
            with self._database.writing() as session:
                LeaseRepository(session).record_steps(
                    self._lease,
                    rows,
                    tokens_per_second=last.tokens_seen / last.elapsed_s if last.elapsed_s else None,
                    estimated_finish_at=now
                    + timedelta(seconds=seconds_a_step * (self._total_steps - last.step)),
                )
                events = EventRepository(session, self._lease.project_id)
                for row in filter(self._is_worth_an_event, rows):
                    events.add_metrics(
                        self._lease.job_id, row, total_steps=self._total_steps, now=now
                    )
            self.has_written = True
            self._waiting = []  # not before: a busy database has taken none of them
        self._log_progress(last)

    def _log_progress(self, last: StepMetrics) -> None:
        if steady_s() - self._logged_s < PROGRESS_INTERVAL_S:
            return
        self._logged_s = steady_s()
        context = {"job_id": self._lease.job_id, "train_loss": round(last.train_loss, 4)}
        logger.info("step %d/%d", last.step, self._total_steps, extra=context)

    def _is_worth_an_event(self, row: StepMetrics) -> bool:
        is_due = row.step % self._lease.config.logging_steps == 0
        return is_due or row.step == self._total_steps or row.valid_loss is not None
