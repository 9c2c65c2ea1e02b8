"""One attempt at one job, from claim to end: keeps its lease, writes down what its child does.

Every write names the attempt, so once the job belongs to another one, LeaseLostError ends it.
No transaction is open while a child trains or while bytes move. Two threads call in here: one
relays what the child says, the other beats, so that neither a busy child nor bytes that take long
to copy can cost the job its lease.
"""

import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from app.core.clock import Clock, steady_s
from app.core.db.repositories.leases import Lease, LeaseRepository, Wish
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError, LeaseLostError, StorageFullError
from app.core.job.status import JobStatus
from app.core.job.training_events import (
    Checkpointed,
    Failed,
    Finished,
    Noted,
    OutOfSpace,
    Planned,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
    Unresumable,
)
from worker.attempt.endings import MAKE_ROOM, crash_of, was_ended_by_us
from worker.attempt.publisher import Publisher
from worker.attempt.step_log import StepLog
from worker.launch.launcher import Ending, Order

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0
"""Steps are written to the database at most this often: a commit is dearer than a small step."""

RENEWALS = 6
"""In the time of one lease."""

RETRY_S = 0.2
_FOR_THE_MOMENT = (DatabaseBusyError, StorageFullError)
"""Nothing was done, and it may be done a moment later."""

LEASE_MARGIN = 0.25
"""Part of the lease that a worker which cannot reach the database leaves unused."""


class Attempt:
    """What the launcher and the heartbeat call back, and what comes after them.

    Attributes:
        must_wait: whether the next attempt at any job had better not come at once.

    Args:
        stop_at_s: when the worker, which is told to stop, will have no more time for this job, by
            `steady_s`; None while it may go on.
    """

    def __init__(
        self,
        lease: Lease,
        publisher: Publisher,
        *,
        database: Database,
        clock: Clock,
        lease_for: timedelta,
        stop_at_s: Callable[[], float | None],
    ) -> None:
        self._lease = lease
        self._publisher = publisher
        self._database = database
        self._clock = clock
        self._lease_for = lease_for
        self._stop_at_s = stop_at_s
        self._wish = Wish.GO_ON
        self._is_lost = False
        self.must_wait = False
        self._end: Finished | Failed | Stopped | OutOfSpace | Unresumable | None = None
        self._steps = StepLog(lease, database=database, clock=clock)
        self._renewed_s = steady_s()

    def begin(self, *, after_step: int) -> None:
        """The directory is filled, and its child will go on after this step.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._steps.begin(after_step=after_step)
        now = self._clock()

        def write() -> None:
            with self._database.writing() as session:
                LeaseRepository(session).begin(self._lease, after_step=after_step, now=now)

        self._while_leased(write)

    def beat(self) -> None:
        """Look what the user wants, keep the lease, write down the steps that wait for it."""
        if self._is_lost:
            return
        try:
            self._look()
            self._steps.write(at_least_after_s=FLUSH_INTERVAL_S)
        except LeaseLostError:
            self._is_lost = True
        except _FOR_THE_MOMENT as error:
            logger.warning("the database refused: %s", error, extra={"job_id": self._lease.job_id})

    def order(self) -> Order:
        """What the child is to do now. Returns at once."""
        stop_at_s = self._stop_at_s()
        if self._is_late() or self._wish is Wish.CANCEL:
            return Order.END
        if stop_at_s is not None:
            return Order.END if steady_s() > stop_at_s else Order.SAVE_AND_END
        return Order.SAVE_AND_END if self._wish is Wish.PAUSE else Order.GO_ON

    def on_event(self, event: TrainingEvent) -> None:
        """Write down what the child reports.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            ManifestError: a checkpoint is not what its manifest says.
        """
        self._while_leased(lambda: self._write_down(event))
        if isinstance(event, Stepped) and not self._steps.has_written:
            self._while_leased(self._steps.write)  # a user waits for the first

    def settle(self, ending: Ending) -> None:
        """End the job, or put it back.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._while_leased(lambda: self._settle(ending))

    def fail(self, *, code: str, message: str, **more: Any) -> None:
        """End the job as failed, with the reason.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        error: dict[str, Any] = {"code": code, "message": message, "param": None, "errors": []}
        self._while_leased(lambda: self._finish(JobStatus.FAILED, error=error | more))

    def release(self, why: str) -> None:
        """Leave the job to its next attempt, or as its user wants it.

        Args:
            why: the beginning of a sentence, as `The worker was stopped`.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """

        def write() -> None:
            with self._database.writing() as session:
                RecoveryRepository(session).release(self._lease, why, now=self._clock())

        self._while_leased(write)

    def give_up(self, why: str, advice: str) -> None:
        """Leave the job, which cannot run on this machine for the moment, to its next attempt.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self.must_wait = True
        self._publisher.abandon()  # what fills the disk is in the way of saying so
        now = self._clock()

        def write() -> None:
            with self._database.writing() as session:
                RecoveryRepository(session).give_up(self._lease, why, advice, now=now)

        self._while_leased(write)

    def _look(self) -> None:
        now_s = steady_s()
        if now_s - self._renewed_s < self._lease_for.total_seconds() / RENEWALS:
            with self._database.reading() as session:
                self._wish = LeaseRepository(session).read_wish(self._lease)
            return
        with self._database.writing() as session:
            until = self._clock() + self._lease_for
            self._wish = LeaseRepository(session).renew(self._lease, until=until)
        self._renewed_s = now_s

    def _write_down(self, event: TrainingEvent) -> None:
        match event:
            case Stepped():
                self._steps.append(event.metrics)
            case Planned() | Started():
                if isinstance(event, Started):
                    self._steps.start(total_steps=event.total_steps)
                with self._database.writing() as session:
                    LeaseRepository(session).start(self._lease, total_steps=event.total_steps)
            case Noted():
                with self._database.writing() as session:
                    leases = LeaseRepository(session)
                    leases.hold(self._lease)
                    leases.note(self._lease, event.message, now=self._clock(), level=event.level)
            case Checkpointed():
                self._steps.write()
                self._publisher.publish_checkpoint(event)
            case Saved():
                self._steps.write()
                self._publisher.publish_state(event)
            case Finished() | Failed() | Stopped() | OutOfSpace() | Unresumable():
                self._steps.write()
                self._end = event

    def _settle(self, ending: Ending) -> None:
        if self._is_late():
            raise LeaseLostError(self._lease.job_id, self._lease.attempt)
        self._steps.write()
        if isinstance(self._end, Finished) and ending.exit_code == 0:
            if not self._publisher.publish_result(self._end):
                self._finish(JobStatus.CANCELLED)
        elif self._wish is Wish.CANCEL:
            self._finish(JobStatus.CANCELLED)
        elif isinstance(self._end, Failed):
            self.fail(**self._end.model_dump(exclude={"kind"}, mode="json"))
        else:
            self._put_back(ending)

    def _put_back(self, ending: Ending) -> None:
        if isinstance(self._end, OutOfSpace):
            self.give_up(self._end.message.rstrip("."), MAKE_ROOM)
        elif isinstance(self._end, Unresumable):
            self._publisher.drop_state(self._end)
        elif isinstance(self._end, Stopped) or was_ended_by_us(ending):
            is_stopping = self._stop_at_s() is not None
            self.release("The worker was stopped" if is_stopping else "The job was interrupted")
        else:
            with self._database.writing() as session:
                recovery = RecoveryRepository(session)
                recovery.crash(self._lease, crash_of(ending), now=self._clock())

    def _finish(self, status: JobStatus, **values: Any) -> None:
        now = self._clock()
        with self._database.writing() as session:
            leases = LeaseRepository(session)
            leases.finish(self._lease, status, now=now, **values)
            if status is JobStatus.FAILED:
                message = f"The job failed: {values['error']['message']}"
                leases.note(self._lease, message, now=now, level="error")
            else:
                leases.note(self._lease, "Fine-tuning job cancelled", now=now)

    def _while_leased(self, write: Callable[[], object]) -> None:
        """Repeat what a busy or full database has refused while the lease lasts."""
        while True:
            try:
                write()
            except _FOR_THE_MOMENT:
                if self._is_late() or steady_s() > (self._stop_at_s() or math.inf):
                    raise LeaseLostError(self._lease.job_id, self._lease.attempt) from None
                time.sleep(RETRY_S)  # one that is away refuses at once
            else:
                return

    def _is_late(self) -> bool:
        """After so long without a renewal, the job may be another worker's any moment."""
        allowed_s = self._lease_for.total_seconds() * (1 - LEASE_MARGIN)
        self._is_lost = self._is_lost or steady_s() - self._renewed_s > allowed_s
        return self._is_lost
