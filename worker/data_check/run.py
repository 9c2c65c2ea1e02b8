"""One try to check the data of one job: prepare its directory, start the child, record its report.

Once the check belongs to another worker or the job is cancelled, LeaseLostError ends this try.
"""

import logging
from collections.abc import Callable
from typing import Any

from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.leases import Lease
from app.core.db.repositories.recovery import Crash, Interruption, ModelAway
from app.core.db.repositories.sweeps.shared_checks import list_sharers
from app.core.db.session import Session
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import Checked, JobError, Made, Noted, Progressed
from app.core.job.training_config import TrainingConfig
from app.core.storage.blob_store import delete_blobs
from worker.attempt.attempt_store import AttemptStore
from worker.attempt.base_model import bring_base_model
from worker.attempt.endings import AttemptEnd, Released
from worker.attempt.lease_keeper import LeaseKeeper, Resources
from worker.attempt.leased_run import LeasedRun
from worker.attempt.report_check import ReportCheck
from worker.job_directory import JobDirectory
from worker.job_spec import JobInputs
from worker.launch.launcher import Launcher

logger = logging.getLogger(__name__)


class CheckRun(LeasedRun):
    """Checks the data. Afterwards the job is queued, paused or failed, or is checked again.

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
        reports = ReportCheck()
        reports.begin_check()
        keeper = LeaseKeeper(lease, resources, stop_at_s, DataCheckRepository)
        directory = JobDirectory(resources.settings.work_dir, lease, "check_data")
        super().__init__(keeper, resources, launcher, directory, reports)

    def _fill(self) -> None:
        resources = self._resources
        bring_base_model(self._keeper, resources, self._add_event, needs_weights=False)
        inputs = self._keeper.read(self._read_inputs)
        store = AttemptStore(resources.store, self._keeper)
        self._directory.fill(inputs, store, resources.catalogue, resources.settings)

    def _read_inputs(self, session: Session) -> JobInputs:
        lease, files = self._lease, FileRepository(session, self._lease.project_id)
        validation_file_id = lease.validation_file_id
        return JobInputs(
            files.get_for_job(lease.training_file_id),
            files.get_for_job(validation_file_id) if validation_file_id else None,
            others={
                job.id: TrainingConfig.model_validate(job.config)
                for job in list_sharers(session, lease.job_id)
            },
        )

    def _finish(self, event: Made) -> None:
        """Store the tokens and record the report, or free the tokens if the check is lost."""
        assert isinstance(event, Checked)  # noqa: S101 - `ReportCheck` refuses any other
        files: dict[str, dict[str, Any]] = {}
        if event.directory is not None:
            stored = self._directory.store_directory(self._resources.store, event.directory, step=0)
            files = {
                file.name: {"key": file.blob_key, "bytes": file.bytes, "sha256": file.sha256}
                for file in stored.files
            }
        report = event.report.model_dump(mode="json")
        try:
            self._transact(
                lambda checks: checks.finish(
                    self._lease,
                    report,
                    files or None,
                    estimate=event.report.estimate,
                    others=event.others,
                    error=event.error,
                    now=self._resources.clock(),
                )
            )
        except LeaseLostError:
            delete_blobs(self._resources.store, [file["key"] for file in files.values()])
            raise

    def _end(self, end: AttemptEnd) -> None:
        lease, now = self._lease, self._resources.clock()
        match end:
            case JobError():
                self._transact(lambda checks: checks.finish(lease, None, error=end, now=now))
            case Crash():
                logger.warning("the check crashed: %s", end.last_line)
                self._transact(lambda checks: checks.crash(lease, end.what, now=now))
            case _:
                self.must_wait = isinstance(end, Interruption | ModelAway | Released)
                self._directory.remove()  # it may fill the disk that the database needs
                why = end.message if isinstance(end, ModelAway) else None
                self._transact(lambda checks: checks.release(lease, now=now, waits_for=why))

    def _note(self, event: Noted | Progressed) -> None:
        assert isinstance(event, Noted)  # noqa: S101 - `ReportCheck` refuses any other
        self._keeper.transact(lambda session: self._add_event(session, event))

    def _add_event(self, session: Session, event: Noted) -> None:
        checks = DataCheckRepository(session)
        checks.hold(self._lease)
        now = self._resources.clock()
        checks.note(self._lease, event.message, now=now, level=event.level)

    def _transact(self, act: Callable[[DataCheckRepository], None]) -> None:
        self._keeper.transact(lambda session: act(DataCheckRepository(session)))
