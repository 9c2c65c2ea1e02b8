"""One attempt at one job, from claim to end: writes down what its child does, and settles it.

Every write names the attempt, so once the job belongs to another one, LeaseLostError ends it.
No transaction is open while a child trains or while bytes move.
"""

import logging
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from app.core import loss_log
from app.core.clock import Clock
from app.core.db.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.events import EventRepository
from app.core.db.files import FileRepository
from app.core.db.jobs import JobRepository
from app.core.db.leases import Lease, LeaseRepository
from app.core.db.models import Checkpoint, TunedModel
from app.core.db.session import Database, Session
from app.core.errors import DatabaseBusyError, LeaseLostError
from app.core.ids import IdPrefix, new_id
from app.core.job_status import JobStatus
from app.core.loss_log import StepMetrics
from app.core.storage.base import BlobStore
from app.core.training_events import (
    Checkpointed,
    Failed,
    Finished,
    Noted,
    Started,
    Stepped,
    TrainingEvent,
)
from worker.launcher import Ending
from worker.workspace import Workspace, as_file

logger = logging.getLogger(__name__)

RESULT_NAME = "step_metrics.csv"
FLUSH_INTERVAL_S = 1.0
"""Steps are written to the database at most this often: a commit is dearer than a small step."""

LEASE_MARGIN = 0.25
"""Part of the lease that a worker which cannot reach the database leaves unused."""


class Attempt:
    """What `Launcher.run` calls back, and what comes after it."""

    def __init__(
        self,
        lease: Lease,
        workspace: Workspace,
        *,
        database: Database,
        store: BlobStore,
        clock: Clock,
        lease_for: timedelta,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._lease = lease
        self._workspace = workspace
        self._database = database
        self._store = store
        self._clock = clock
        self._lease_for = lease_for
        self._is_stopping = is_stopping
        self._is_cancelled = False
        self._end: Finished | Failed | None = None
        self._total_steps = 0
        self._steps: list[StepMetrics] = []
        self._started_s = self._flushed_s = self._renewed_s = time.monotonic()

    def tick(self) -> bool:
        """Show that the worker lives. Returns whether the child must stop.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        now_s = time.monotonic()
        try:
            if self._steps and now_s - self._flushed_s >= FLUSH_INTERVAL_S:
                self._flush()
            with self._database.writing() as session:
                until = self._clock() + self._lease_for
                self._is_cancelled = LeaseRepository(session).renew(self._lease, until=until)
            self._renewed_s = now_s
        except DatabaseBusyError:
            self._give_up_if_late()
        return self._is_cancelled or self._is_stopping()

    def on_event(self, event: TrainingEvent) -> None:
        """Write down what the child reports.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
            ManifestError: a checkpoint is not what its manifest says.
        """
        self._while_leased(lambda: self._write_down(event))

    def _write_down(self, event: TrainingEvent) -> None:
        match event:
            case Stepped():
                self._steps.append(event.metrics)
            case Started():
                self._total_steps = event.total_steps
                self._started_s = time.monotonic()
                with self._database.writing() as session:
                    LeaseRepository(session).start(self._lease, total_steps=event.total_steps)
            case Noted():
                with self._database.writing() as session:
                    leases = LeaseRepository(session)
                    leases.hold(self._lease)
                    leases.note(self._lease, event.message, now=self._clock(), level=event.level)
            case Checkpointed():
                self._flush()
                self._publish_checkpoint(event)
            case Finished() | Failed():
                self._flush()
                self._end = event

    def settle(self, ending: Ending) -> None:
        """End the job, or put it back into the queue.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        self._while_leased(lambda: self._settle(ending))

    def _settle(self, ending: Ending) -> None:
        self._flush()
        if self._is_cancelled:
            self._cancel()
        elif isinstance(self._end, Finished) and ending.exit_code == 0:
            self._succeed(self._end)
        elif isinstance(self._end, Failed):
            self.fail(**self._end.model_dump(exclude={"kind"}, mode="json"))
        elif ending.was_stopped:
            with self._database.writing() as session:
                LeaseRepository(session).release(self._lease, now=self._clock())
        else:
            self.fail(code="training_crashed", message=_why_it_crashed(ending))

    def fail(self, *, code: str, message: str, **more: Any) -> None:
        """End the job as failed, with the reason.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        error: dict[str, Any] = {"code": code, "message": message, "param": None, "errors": []}
        self._while_leased(lambda: self._fail(error | more))

    def _fail(self, error: dict[str, Any]) -> None:
        now = self._clock()
        with self._database.writing() as session:
            leases = LeaseRepository(session)
            leases.finish(self._lease, JobStatus.FAILED, now=now, error=error)
            message = f"The job failed: {error['message']}"
            leases.note(self._lease, message, now=now, level="error")

    def _cancel(self) -> None:
        now = self._clock()
        with self._database.writing() as session:
            leases = LeaseRepository(session)
            leases.finish(self._lease, JobStatus.CANCELLED, now=now)
            leases.note(self._lease, "Fine-tuning job cancelled", now=now)

    def _succeed(self, end: Finished) -> None:
        with self._database.reading() as session:
            log = JobRepository(session, self._lease.project_id).list_steps(self._lease.job_id)
        text = "".join(loss_log.csv_lines(log))
        result = self._workspace.store_text(self._store, RESULT_NAME, text)
        now = self._clock()
        with self._database.writing() as session:
            if LeaseRepository(session).renew(self._lease, until=now + self._lease_for):
                self._is_cancelled = True  # asked for while the last files were written
            else:
                file = as_file(result, self._lease, now=now)
                FileRepository(session, self._lease.project_id).add(file)
                self._publish_model(session, end, result_file_id=file.id)
        if self._is_cancelled:
            self._store.delete(result.blob_key)
            self._cancel()

    def _publish_model(self, session: Session, end: Finished, *, result_file_id: str) -> None:
        lease, now = self._lease, self._clock()
        checkpoints = CheckpointRepository(session, lease.project_id)
        checkpoint = checkpoints.find_at_step(lease.job_id, end.step)
        if checkpoint is None:
            raise RuntimeError(f"The child finished at step {end.step} without a checkpoint of it.")
        TunedModelRepository(session, lease.project_id).add(
            TunedModel(
                id=lease.fine_tuned_model,
                job_id=lease.job_id,
                checkpoint_id=checkpoint.id,
                base_model=lease.base_model,
                created_at=now,
            )
        )
        leases = LeaseRepository(session)
        leases.finish(
            lease,
            JobStatus.SUCCEEDED,
            now=now,
            trained_tokens=end.trained_tokens,
            result_checkpoint_id=checkpoint.id,
            result_file_id=result_file_id,
        )
        leases.note(lease, f"New fine-tuned model created: {lease.fine_tuned_model}", now=now)
        leases.note(lease, "The job has successfully completed", now=now)

    def _publish_checkpoint(self, event: Checkpointed) -> None:
        """Bytes first, then, in one fenced transaction, the rows that point at them."""
        lease = self._lease
        stored, manifest_sha256 = self._workspace.store_checkpoint(self._store, event.directory)
        now = self._clock()
        with self._database.writing() as session:
            leases = LeaseRepository(session)
            leases.hold(lease)
            jobs = JobRepository(session, lease.project_id)
            # Not always the newest step: after an early stop, the best one is saved.
            (metrics,) = jobs.list_steps(lease.job_id, first=event.step, last=event.step)
            CheckpointRepository(session, lease.project_id).add(
                Checkpoint(
                    id=new_id(IdPrefix.CHECKPOINT),
                    job_id=lease.job_id,
                    attempt=lease.attempt,
                    step=event.step,
                    created_at=now,
                    metrics=metrics.model_dump(),
                    manifest_sha256=manifest_sha256,
                    files=[as_file(file, lease, now=now) for file in stored],
                )
            )
            name = f"{lease.fine_tuned_model}:ckpt-step-{event.step}"
            leases.note(lease, f"Checkpoint created at step {event.step}: {name}", now=now)

    def _flush(self) -> None:
        """Write the steps that have come in since the last time, and the events they are due."""
        self._flushed_s = time.monotonic()
        if not self._steps:
            return
        rows, last = self._steps, self._steps[-1]
        seconds_a_step = (self._flushed_s - self._started_s) / last.step
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
                events.add_metrics(self._lease.job_id, row, total_steps=self._total_steps, now=now)
        self._steps = []  # not before: a busy database has taken none of them

    def _while_leased(self, write: Callable[[], None]) -> None:
        """Repeat what a busy database has refused, and so not begun, while the lease lasts."""
        while True:
            try:
                return write()
            except DatabaseBusyError:
                self._give_up_if_late()

    def _give_up_if_late(self) -> None:
        """After so long without a renewal, the job may be another worker's any moment."""
        allowed_s = self._lease_for.total_seconds() * (1 - LEASE_MARGIN)
        if time.monotonic() - self._renewed_s > allowed_s:
            raise LeaseLostError(self._lease.job_id, self._lease.attempt) from None

    def _is_worth_an_event(self, row: StepMetrics) -> bool:
        is_due = row.step % self._lease.config.logging_steps == 0
        return is_due or row.step == self._total_steps or row.valid_loss is not None


def _why_it_crashed(ending: Ending) -> str:
    if ending.exit_code == -signal.SIGKILL:
        why = (
            "The training process was killed, most likely because the machine ran out of memory. "
            "Lower batch_size or context_length, or take a smaller base model."
        )
    elif ending.exit_code < 0:
        why = f"The training process died of {signal.Signals(-ending.exit_code).name}."
    else:
        why = f"The training process ended with exit code {ending.exit_code}."
    return f"{why} The end of its log:\n{ending.log_tail}" if ending.log_tail else why
