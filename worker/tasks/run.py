"""One try at a task: prepare its directory, start the child, publish what it has made.

Once the task belongs to another worker or is deleted, LeaseLostError ends this try.
"""

import logging
from collections.abc import Callable

from app.core.db.repositories.base_models.stored import FETCH_PAUSE
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.recovery import MEMORY_PAUSE, Crash, Interruption, ModelAway
from app.core.db.repositories.tasks.leases import ClaimedTask, TaskLeases
from app.core.db.repositories.tasks.reports import find_validation_data
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, File
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import (
    Exported,
    JobError,
    Made,
    MemoryShort,
    Noted,
    Progressed,
    Reported,
)
from app.core.job.scores.report import REPORT
from app.core.storage.blob_store import delete_blobs
from worker.attempt.attempt_store import AttemptStore
from worker.attempt.base_model import bring_base_model
from worker.attempt.endings import AttemptEnd
from worker.attempt.lease_keeper import LeaseKeeper, Resources
from worker.attempt.leased_run import LeasedRun
from worker.attempt.report_check import ReportCheck
from worker.launch.launcher import Launcher
from worker.tasks.directory import TaskDirectory

logger = logging.getLogger(__name__)


class TaskRun(LeasedRun):
    """Makes an export or a report. Afterwards it is there or has failed, or it is tried again.

    Args:
        task: the task.
        resources: what all attempts of the worker share.
        launcher: starts the child.
        stop_at_s: returns when a worker that is told to stop must have left the task, by
            `steady_s`; None while it may go on.
    """

    def __init__(
        self,
        task: ClaimedTask,
        resources: Resources,
        launcher: Launcher,
        *,
        stop_at_s: Callable[[], float | None],
    ) -> None:
        reports = ReportCheck()
        if task.kind == REPORT:
            reports.begin_report()
        else:
            reports.begin_export()

        def leases(session: Session) -> TaskLeases:
            return TaskLeases(session, task.id)

        keeper = LeaseKeeper(task.lease, resources, stop_at_s, leases)
        self._task = task
        self._made = TaskDirectory(resources.settings.work_dir, task)
        super().__init__(keeper, resources, launcher, self._made, reports)

    def _fill(self) -> None:
        resources = self._resources
        bring_base_model(self._keeper, resources)
        checkpoint, data = self._keeper.read(self._read_inputs)
        self._made.fill_with(
            *(checkpoint, data, AttemptStore(resources.store, self._keeper)),
            *(resources.catalogue, resources.settings),
        )

    def _read_inputs(self, session: Session) -> tuple[Checkpoint, File | None]:
        """The checkpoint, and the validation data for the report on the result of a job."""
        lease = self._lease
        checkpoints = CheckpointRepository(session, lease.project_id)
        checkpoint = checkpoints.find(lease.job_id, self._task.checkpoint_id)
        if checkpoint is None:  # it has just been deleted, and the task with it
            raise LeaseLostError(lease.job_id, lease.attempt)
        if self._task.kind != REPORT:
            return checkpoint, None
        job = JobRepository(session, lease.project_id).get(lease.job_id)
        is_result = checkpoint.id == job.result_checkpoint_id
        return checkpoint, find_validation_data(session, job) if is_result else None

    def _note(self, event: Noted | Progressed) -> None:
        if isinstance(event, Progressed):
            self._transact(lambda task: task.progress(self._lease, event.fraction))

    def _finish(self, event: Made) -> None:
        if isinstance(event, Reported):
            result, now = event.report.model_dump(mode="json"), self._resources.clock()
            self._transact(lambda task: task.finish(self._lease, result, None, now=now))
            return
        assert isinstance(event, Exported)  # noqa: S101 - `ReportCheck` refuses any other
        self._publish(event)

    def _publish(self, event: Exported) -> None:
        """Store the files and publish them, or free them if the task is lost."""
        store = self._resources.store
        stored = self._made.store_directory(store, event.directory, step=self._made.step)
        files = {
            file.name: {
                "key": file.blob_key,
                "bytes": file.bytes,
                "sha256": file.sha256,
                "crc32": file.crc32,
            }
            for file in stored.files
        }
        result = event.verification.model_dump(mode="json")
        now = self._resources.clock()
        try:
            self._transact(lambda task: task.finish(self._lease, result, files, now=now))
        except LeaseLostError:
            delete_blobs(store, [file.blob_key for file in stored.files])
            raise

    def _end(self, end: AttemptEnd) -> None:
        lease, now = self._lease, self._resources.clock()
        self._made.remove()  # it may fill the disk that the database needs
        match end:
            case JobError():
                self._transact(lambda task: task.fail(lease, end, now=now))
            case Crash() | Interruption():
                logger.warning("the task was interrupted: %s", end.what)
                self.must_wait = True
                self._transact(lambda task: task.crash(lease, end.what, now=now))
            case _:
                self.must_wait = True  # a job that needs the memory comes before other tasks
                if isinstance(end, MemoryShort | ModelAway):
                    logger.info("the task waits: %s", end.message)
                pause = FETCH_PAUSE if isinstance(end, ModelAway) else MEMORY_PAUSE
                waits_until = None if self._keeper.is_stopping else now + pause
                self._transact(lambda task: task.release(lease, now=now, not_before=waits_until))

    def _transact(self, act: Callable[[TaskLeases], None]) -> None:
        spent_s = self._processor_s
        self._keeper.transact(
            lambda session: act(TaskLeases(session, self._task.id, processor_s=spent_s))
        )
