"""One attempt at one job: prepare its directory, begin, run the training process, settle.

Every write names the attempt, so once the job belongs to another attempt, LeaseLostError ends this
one. No transaction is open while a child trains or while bytes move. Two threads call in here: one
relays the child's events, the other is the heartbeat. So neither a busy child nor bytes that take
long to copy can cost the job its lease.
"""

import logging
from collections.abc import Callable, Mapping

from app.core.clock import steady_s
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository, RequestedAction
from app.core.db.repositories.projects.access import ProjectsRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.recovery import Crash, Interruption, ModelAway, RecoveryRepository
from app.core.db.repositories.saved_states import SavedStateRepository
from app.core.db.repositories.sweeps.shared_checks import find_tokens
from app.core.db.session import Session
from app.core.errors import (
    DatabaseBusyError,
    LeaseLostError,
    NotFoundError,
    OutcomeUnknownError,
)
from app.core.job.child.training_events import (
    Checked,
    Checkpointed,
    Exported,
    Finished,
    JobError,
    MemoryShort,
    Noted,
    Planned,
    Progressed,
    Reported,
    Saved,
    Started,
    Stepped,
    TrainingEvent,
    Unresumable,
)
from app.core.job.loss_log import MAX_STEP
from app.core.job.status import JobStatus
from worker.attempt.attempt_store import AttemptStore
from worker.attempt.base_model import bring_base_model
from worker.attempt.endings import (
    AttemptEnd,
    Cancelled,
    LastEvent,
    Released,
    UnpublishedEnd,
    end_of_error,
    end_of_process,
)
from worker.attempt.lease_keeper import TRANSIENT_ERRORS, LeaseKeeper, Resources
from worker.attempt.publisher import Publisher
from worker.attempt.report_check import ReportCheck
from worker.attempt.step_log import StepLog
from worker.job_directory import JobDirectory, JobInputs
from worker.launch.launcher import Ending, Signal
from worker.presence import repeating
from worker.trackers.feed import feeding

logger = logging.getLogger(__name__)


class Attempt:
    """Runs once, as the `Watcher` of its training process.

    Its parts raise LeaseLostError when the job is no longer this attempt's.

    Attributes:
        must_wait: whether the worker should pause before its next attempt at any job.

    Args:
        stop_at_s: returns when a worker that is told to stop must have left the job, by `steady_s`;
            None while it may go on.
    """

    def __init__(
        self,
        lease: Lease,
        resources: Resources,
        *,
        stop_at_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._lease = lease
        self._resources = resources
        self._job_directory = JobDirectory(resources.settings.work_dir, lease)
        self._keeper = LeaseKeeper(lease, resources, stop_at_s)
        self._publisher = Publisher(self._keeper, self._job_directory, resources)
        self._steps = StepLog(self._keeper, resources)
        self._reports = ReportCheck()
        self._last_event: LastEvent | None = None
        self.must_wait = False

    def run(self) -> None:
        """Make the attempt. Afterwards the job has ended, waits for another attempt, or is lost."""
        context = {"job_id": self._lease.job_id, "attempt": self._lease.attempt}
        began_s, shared = steady_s(), self._resources
        try:
            with (
                repeating(self.beat, interval_s=shared.poll_interval_s),
                feeding(self._lease, shared.database, shared.settings, shared.clock),
            ):
                self._run()
        except LeaseLostError:
            logger.warning("lease lost; nothing more was written", extra=context)
        except OutcomeUnknownError:  # the job has ended, or is recovered once its lease has
            logger.warning("the connection to the database was lost during a commit", extra=context)
        finally:
            self._job_directory.remove()
            self._log_end(context | {"seconds": round(steady_s() - began_s, 1)})

    def begin(self, *, after_step: int) -> None:
        """Record that the training process will resume after this step, or start if it is 0."""
        self._steps.begin(after_step=after_step)
        self._keeper.transact(
            lambda session: LeaseRepository(session).begin(
                self._lease, after_step=after_step, now=self._resources.clock()
            )
        )
        left_s = self._keeper.read(self._read_seconds_left)
        if left_s is not None:
            self._keeper.limit_to(left_s)

    def beat(self) -> None:
        """Poll what the user wants, renew the lease, and write the steps that wait."""
        try:
            self._keeper.poll()
            self._steps.flush_if_due()
        except LeaseLostError:
            return  # the next signal kills the child
        except TRANSIENT_ERRORS as error:
            logger.warning("the database refused: %s", error, extra={"job_id": self._lease.job_id})

    def requested_signal(self) -> Signal:
        """Return what the training process is to do. Returns at once."""
        return self._keeper.requested_signal()

    def on_event(self, event: TrainingEvent) -> None:
        """Write down what the training process reports.

        Raises:
            ProtocolError: it cannot be true.
            ManifestError: a checkpoint is not what its manifest says.
        """
        self._reports.check(event)
        if isinstance(event, Stepped):
            self._steps.append(event.metrics)
            if not self._steps.has_written:  # a user waits for the first step
                self._steps.flush()
            return
        match event:
            case Planned() | Started():
                self._record_total(event)
            case Noted():
                self._keeper.transact(lambda session: self._note(session, event))
            case Checkpointed():
                self._steps.flush()
                self._publisher.publish_checkpoint(event)
            case Saved():
                self._steps.flush()
                self._publisher.publish_state(event)
            case Progressed() | Checked() | Exported() | Reported():  # no training reports these
                raise TypeError(event.kind)
            case _:
                self._steps.flush()
                self._last_event = event

    def settle(self, ending: Ending) -> None:
        """End the job or put it back, after its training process has ended."""
        self._keeper.require()
        self._steps.flush()
        end = end_of_process(
            self._last_event,
            ending,
            action=self._keeper.requested_action,
            is_stopping=self._keeper.is_stopping,
            is_over_time=self._keeper.is_over_time,
            has_trained=self._reports.last_step > 0,
        )
        if isinstance(end, Crash):  # clients are shown only a line of it
            log = {"job_id": self._lease.job_id, "log": ending.log_tail.splitlines()}
            logger.warning("the training process crashed", extra=log)
        self.end(end)

    def end(self, end: AttemptEnd) -> None:
        """End the attempt in this way, and with it the job, unless that is put back."""
        match end:
            case Finished():
                self._publisher.publish_result(end)
            case Unresumable():
                self._publisher.drop_state(end)
            case _:
                self.must_wait = isinstance(end, Interruption | MemoryShort | ModelAway | Released)
                if isinstance(end, Interruption):
                    self._job_directory.remove()  # it may fill the disk that the database needs
                self._keeper.transact(lambda session: self._write_end(session, end))

    def _run(self) -> None:
        try:
            self.begin(after_step=self._prepare())
            self.settle(self._resources.launcher.run(self._job_directory.directory, self))
        except (LeaseLostError, OutcomeUnknownError):
            raise
        except Exception as error:
            self._resources.doubts.note(error)
            end = end_of_error(error, self._lease)
            is_cancelled = self._keeper.requested_action is RequestedAction.CANCEL
            self.end(Cancelled() if is_cancelled else end)

    def _prepare(self) -> int:
        """Fill the job directory. Returns the step after which training resumes, or 0."""
        shared = self._resources
        bring_base_model(self._keeper, shared, self._note)
        inputs = self._keeper.read(self._read_inputs)
        store = AttemptStore(shared.store, self._keeper)
        step = self._job_directory.fill(inputs, store, shared.catalogue, shared.settings)
        lines = inputs.training_file.examples
        total_steps = self._lease.config.max_total_steps(lines) if lines else MAX_STEP
        self._reports.begin(after_step=step, total_steps=total_steps)
        return step

    def _read_inputs(self, session: Session) -> JobInputs:
        lease, files = self._lease, FileRepository(session, self._lease.project_id)
        jobs = JobRepository(session, lease.project_id)
        states = SavedStateRepository(session, self._lease.project_id).list_newest(lease.job_id)
        return JobInputs(
            files.get_for_job(lease.training_file_id),
            files.get_for_job(lease.validation_file_id) if lease.validation_file_id else None,
            states,
            jobs.list_steps(lease.job_id, last=states[0].step) if states else (),
            find_tokens(session, lease.job_id),
            files.find_weights(lease.parent.checkpoint_id) if lease.parent else None,
        )

    def _read_seconds_left(self, session: Session) -> float | None:
        project_id = self._lease.project_id
        limit_s = ProjectsRepository(session).get(project_id).max_duration_s
        if limit_s is None:
            return None
        usage = UsageRepository(session, project_id)
        return limit_s - usage.job_seconds(self._lease.job_id, now=self._resources.clock())

    def _record_total(self, event: Planned | Started) -> None:
        plan, ability, lease, steps = None, self._resources.ability, self._lease, event.total_steps
        if isinstance(event, Started):
            self._steps.start(total_steps=steps)
            plan = ability and ability.plan(event.compute, self._job_directory.spec.threads)
        self._keeper.transact(
            lambda s: LeaseRepository(s).start(lease, total_steps=steps, plan=plan)
        )

    def _note(self, session: Session, event: Noted) -> None:
        leases, now = LeaseRepository(session), self._resources.clock()
        leases.hold(self._lease)
        leases.note(self._lease, event.message, now=now, level=event.level)

    def _write_end(self, session: Session, end: UnpublishedEnd) -> None:
        lease, now = self._lease, self._resources.clock()
        match end:
            case JobError():
                LeaseRepository(session).finish(lease, JobStatus.FAILED, now=now, error=end)
            case Cancelled():
                LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=now)
            case Crash():
                RecoveryRepository(session).crash(lease, end, now=now)
            case Interruption() | ModelAway():
                RecoveryRepository(session).interrupt(lease, end, now=now)
            case Released():
                RecoveryRepository(session).release(lease, end.why, now=now)
            case MemoryShort():
                RecoveryRepository(session).wait_for_memory(lease, end, now=now)

    def _log_end(self, context: Mapping[str, object]) -> None:
        """Log how the attempt ended, in one line, as the database has it."""
        try:
            with self._resources.database.reading() as session:
                job = JobRepository(session, self._lease.project_id).get(self._lease.job_id)
        except (DatabaseBusyError, NotFoundError) as error:
            logger.warning("attempt ended: %s", error, extra=context)
            return
        context = {
            **context,
            "status": job.status.value,
            "code": job.error and job.error["code"],
            "steps": job.trained_steps,
            "total_steps": job.total_steps,
            "train_loss": job.train_loss,
            "valid_loss": job.valid_loss,
            "tokens_per_second": job.tokens_per_second and round(job.tokens_per_second),
        }
        known = {name: value for name, value in context.items() if value is not None}
        logger.info("job ended" if job.status.is_terminal else "attempt ended", extra=known)
