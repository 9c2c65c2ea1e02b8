"""One try to check the data of one job: prepare its directory, start the child, record its report.

Every write names the number of the try, so once the check belongs to another worker or the job is
cancelled, LeaseLostError ends this one. It follows `worker.attempt.attempt`, which says more.
"""

import logging
from collections.abc import Callable
from typing import Any

from app.core.clock import steady_s
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.leases import Lease, RequestedAction
from app.core.db.repositories.recovery import Crash, Interruption
from app.core.db.session import Session
from app.core.errors import LeaseLostError, OutcomeUnknownError
from app.core.job.training_events import (
    Checked,
    Failed,
    JobError,
    Noted,
    OutOfSpace,
    TrainingEvent,
)
from app.core.storage.blob_store import delete_blobs
from worker.attempt.endings import AttemptEnd, end_of_error, end_of_process
from worker.attempt.lease_keeper import TRANSIENT_ERRORS, LeaseKeeper, Resources
from worker.attempt.report_check import ReportCheck
from worker.job_directory import JobDirectory
from worker.job_spec import JobInputs
from worker.launch.launcher import Ending, Launcher, Signal
from worker.presence import repeating

logger = logging.getLogger(__name__)


class CheckRun:
    """Runs once, as the `Watcher` of its child.

    Attributes:
        must_wait: whether the worker should pause before its next check.

    Args:
        lease: the check; its `attempt` is the number of this try.
        resources: what all attempts of the worker share.
        launcher: starts the child.
        stop_at_s: returns when a worker that is told to stop must have left the check, by
            `steady_s`; None while it may go on.
    """

    def __init__(
        self,
        lease: Lease,
        resources: Resources,
        launcher: Launcher,
        *,
        stop_at_s: Callable[[], float | None],
    ) -> None:
        self._lease = lease
        self._resources = resources
        self._launcher = launcher
        self._job_directory = JobDirectory(resources.settings.work_dir, lease, "check_data")
        self._keeper = LeaseKeeper(lease, resources, stop_at_s, DataCheckRepository)
        self._reports = ReportCheck()
        self._reports.begin_check()
        self._last_event: Checked | Failed | OutOfSpace | None = None
        self.must_wait = False

    def run(self) -> None:
        """Check the data. Afterwards the job is queued, paused or failed, or is checked again."""
        began_s = steady_s()
        try:
            with repeating(self.beat, interval_s=self._resources.cancel_poll_interval_s):
                self._run()
        except LeaseLostError:
            logger.info("the check is no longer this worker's")
        except OutcomeUnknownError:  # it is done, or is done again once the lease has run out
            logger.warning("the connection to the database was lost during a commit")
        finally:
            self._job_directory.remove()
            logger.info("check ended", extra={"seconds": round(steady_s() - began_s, 1)})

    def beat(self) -> None:
        """Renew the lease, and see whether the job is cancelled."""
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
            case Noted():
                self._transact(lambda checks: self._note(checks, event))
            case Checked() | Failed() | OutOfSpace():
                self._last_event = event
            case _:  # `ReportCheck` has refused it
                raise TypeError(event.kind)

    def _run(self) -> None:
        try:
            resources = self._resources
            inputs = self._keeper.read(self._read_inputs)
            self._job_directory.fill(
                inputs, resources.store, resources.catalogue, resources.settings
            )
            self._settle(self._launcher.run(self._job_directory.directory, self))
        except (LeaseLostError, OutcomeUnknownError):
            raise
        except Exception as error:
            self._end(end_of_error(error, self._lease))

    def _read_inputs(self, session: Session) -> JobInputs:
        lease, files = self._lease, FileRepository(session, self._lease.project_id)
        validation_file_id = lease.validation_file_id
        return JobInputs(
            files.get_for_job(lease.training_file_id),
            files.get_for_job(validation_file_id) if validation_file_id else None,
        )

    def _settle(self, ending: Ending) -> None:
        self._keeper.require()
        event = self._last_event
        if isinstance(event, Checked):
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

    def _finish(self, checked: Checked) -> None:
        """Store the tokens and record the report, or free the tokens if the check is lost."""
        files: dict[str, dict[str, Any]] = {}
        if checked.directory is not None:
            stored = self._job_directory.store_directory(
                self._resources.store, checked.directory, step=0
            )
            files = {
                file.name: {"key": file.blob_key, "bytes": file.bytes, "sha256": file.sha256}
                for file in stored.files
            }
        report = checked.report.model_dump(mode="json")
        try:
            self._transact(
                lambda checks: checks.finish(
                    self._lease,
                    report,
                    files or None,
                    estimate=checked.report.estimate,
                    error=checked.error,
                    now=self._resources.clock(),
                )
            )
        except LeaseLostError:
            delete_blobs(self._resources.store, [file["key"] for file in files.values()])
            raise

    def _end(self, end: AttemptEnd) -> None:
        """End a check that has no report."""
        lease, now = self._lease, self._resources.clock()
        match end:
            case JobError():
                self._transact(lambda checks: checks.finish(lease, None, error=end, now=now))
            case Crash():
                logger.warning("the check crashed: %s", end.last_line)
                self._transact(lambda checks: checks.crash(lease, end.what, now=now))
            case _:
                self.must_wait = isinstance(end, Interruption)
                self._job_directory.remove()  # it may fill the disk that the database needs
                self._transact(lambda checks: checks.release(lease, now=now))

    def _note(self, checks: DataCheckRepository, event: Noted) -> None:
        checks.hold(self._lease)
        now = self._resources.clock()
        checks.note(self._lease, event.message, now=now, level=event.level)

    def _transact(self, act: Callable[[DataCheckRepository], None]) -> None:
        self._keeper.transact(lambda session: act(DataCheckRepository(session)))
