"""One try at something that a child does under a lease, other than training.

It follows `worker.attempt.attempt`, which says more. Every write names the number of the try, so
once the work belongs to another worker or was withdrawn, LeaseLostError ends this one.
"""

import logging
from abc import ABC, abstractmethod

from app.core.clock import steady_s
from app.core.db.repositories.leases import RequestedAction
from app.core.errors import LeaseLostError, OutcomeUnknownError
from app.core.job.child.training_events import (
    Checked,
    Exported,
    Failed,
    Made,
    MemoryShort,
    Noted,
    OutOfSpace,
    Progressed,
    Reported,
    TrainingEvent,
)
from worker.attempt.endings import AttemptEnd, end_of_error, end_of_process
from worker.attempt.lease_keeper import TRANSIENT_ERRORS, LeaseKeeper, Resources
from worker.attempt.report_check import ReportCheck
from worker.job_directory import JobDirectory
from worker.launch.launcher import Ending, Launcher, Signal
from worker.presence import repeating

logger = logging.getLogger(__name__)


class LeasedRun(ABC):
    """Runs once, as the `Watcher` of its child.

    Attributes:
        must_wait: whether the worker should pause before it tries again.

    Args:
        keeper: keeps the lease.
        resources: what all attempts of the worker share.
        launcher: starts the child.
        job_directory: the directory that the child works in.
        reports: knows what the child may report.
    """

    def __init__(
        self,
        keeper: LeaseKeeper,
        resources: Resources,
        launcher: Launcher,
        job_directory: JobDirectory,
        reports: ReportCheck,
    ) -> None:
        self._keeper = keeper
        self._lease = keeper.lease
        self._resources = resources
        self._launcher = launcher
        self._directory = job_directory
        self._reports = reports
        self._last_event: Made | Failed | OutOfSpace | MemoryShort | None = None
        self._processor_s = 0.0
        self.must_wait = False

    def run(self) -> None:
        """Do it. Afterwards it is done or has failed, or it is tried again."""
        began_s = steady_s()
        try:
            with repeating(self.beat, interval_s=self._resources.poll_interval_s):
                self._run()
        except LeaseLostError:
            logger.info("it is no longer this worker's")
        except OutcomeUnknownError:  # it is done, or is done again once the lease has run out
            logger.warning("the connection to the database was lost during a commit")
        finally:
            self._directory.remove()
            logger.info("child ended", extra={"seconds": round(steady_s() - began_s, 1)})

    def beat(self) -> None:
        """Renew the lease, and see whether the work was withdrawn."""
        try:
            self._keeper.poll()
        except LeaseLostError:
            return  # the next signal kills the child
        except TRANSIENT_ERRORS as error:
            logger.warning("the database refused: %s", error)

    def requested_signal(self) -> Signal:
        """Return what the child is to do. Returns at once."""
        return self._keeper.requested_signal()

    def on_event(self, event: TrainingEvent) -> None:
        """Write down what the child reports.

        Raises:
            ProtocolError: it cannot be true.
        """
        self._reports.check(event)
        match event:
            case Noted() | Progressed():
                self._note(event)
            case Checked() | Exported() | Reported() | Failed() | OutOfSpace() | MemoryShort():
                self._last_event = event
            case _:  # `ReportCheck` has refused it
                raise TypeError(event.kind)

    def _run(self) -> None:
        try:
            self._fill()
            self._settle(self._launcher.run(self._directory.directory, self))
        except (LeaseLostError, OutcomeUnknownError):
            raise
        except Exception as error:
            self._resources.doubts.note(error)
            self._end(end_of_error(error, self._lease))

    def _settle(self, ending: Ending) -> None:
        self._keeper.require()
        self._processor_s = ending.processor_s
        event = self._last_event
        if isinstance(event, Made):
            self._finish(event)
            return
        self._end(
            end_of_process(
                event,
                ending,
                action=RequestedAction.CONTINUE,
                is_stopping=self._keeper.is_stopping,
                is_over_time=False,
                has_trained=False,
            )
        )

    @abstractmethod
    def _fill(self) -> None:
        """Fill the directory of the child."""

    @abstractmethod
    def _note(self, event: Noted | Progressed) -> None:
        """Write down what the child reports on the way."""

    @abstractmethod
    def _finish(self, event: Made) -> None:
        """Store what the child has made, and record its last report."""

    @abstractmethod
    def _end(self, end: AttemptEnd) -> None:
        """End a try that has no result."""
