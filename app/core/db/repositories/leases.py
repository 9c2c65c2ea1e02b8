"""What a worker does with a job: claim it, renew its lease, record its progress, finish it.

`attempt` is the fence. Every write names the attempt it belongs to. A write is refused with
LeaseLostError if that attempt is not the newest one or the job has ended. `recovery` handles jobs
whose attempt ends before the job does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import lazyload

from app.core.abilities.ability import Ability, StoredPlan
from app.core.clock import steady_s
from app.core.db.base import Repository
from app.core.db.repositories.events import EventRepository, Level
from app.core.db.repositories.machines.claims import Claims
from app.core.db.repositories.machines.fitting import WarmModels
from app.core.db.repositories.transitions import UNREADABLE, announce, lock_job, settle
from app.core.db.tables import Job, SavedState, StepRow
from app.core.db.worker_tables import Attempt
from app.core.errors import LeaseLostError
from app.core.job.artifacts import NUMERICS_VERSION
from app.core.job.child.training_events import JobError
from app.core.job.lora_shape import ParentAdapter
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.core.machine.memory import PLENTY, Memory

_INEXACT = (
    "No running worker can compute the job as it was begun, and allow_inexact_resume is true. So "
    "the job goes on inexactly: the last bits of its adapter depend on this change of machines."
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of one job until the lease ends."""

    job_id: str
    project_id: str
    attempt: int
    worker_id: str
    claimed_s: float
    """When the claim began, by `steady_s`: the lease is at least as old as that."""
    base_model: str
    base_model_sha256: str | None
    training_file_id: str
    validation_file_id: str | None
    fine_tuned_model: str
    config: TrainingConfig
    integrations: Sequence[Mapping[str, Any]] = ()
    """Trackers that get the metrics; each is an `Integration`."""
    parent: ParentAdapter | None = None
    """Adapter that the job continues."""
    plan: StoredPlan | None = None
    """How the saved states of the job were computed. None as long as it has none."""
    is_replanned: bool = False
    """Whether the worker cannot do the same, and is to go on with a plan of its own."""
    memory_bytes: int | None = None
    """Estimate of the memory that it needs. None for a job whose data was not checked."""


class RequestedAction(Enum):
    """What the user has asked a running job to do."""

    CONTINUE = auto()
    PAUSE = auto()
    CANCEL = auto()

    @classmethod
    def of(cls, job: Job) -> "RequestedAction":
        if job.cancel_requested_at is not None:
            return cls.CANCEL
        return cls.CONTINUE if job.pause_requested_at is None else cls.PAUSE


class LeaseRepository(Repository):
    def claim(
        self,
        worker_id: str,
        *,
        now: datetime,
        lease_for: timedelta,
        threads: int = 1,
        memory: Memory = PLENTY,
        ability: Ability | None = None,
        warm: WarmModels | None = None,
    ) -> Lease | None:
        """Give the next queued job that fits a worker to it. Returns None if there is none.

        Usually the first project has its turn. If none of its jobs fits, the next one has. So it is
        on PostgreSQL if other transactions are taking all of its queued jobs, or as many as may run
        at once.

        Args:
            threads: CPU threads that the training process of a new job will have. A job with a plan
                keeps those of its plan.
            memory: memory of the worker's machine. A job that needs more than there is in all is
                left to other workers. One that waits for memory is passed over until enough is
                free, or until its `not_before`.
            ability: what the worker can do. It takes nothing if its machine is drained. None for a
                worker that takes any job.
            warm: what the worker has in memory. It may take a job of the same priority that needs
                it before the first one, a few times in a row.
        """
        claimed_s = steady_s()
        claims = Claims(self._session, ability, memory, warm)
        taken = claims.take(worker_id, now=now, until=now + lease_for, threads=threads)
        if taken is None:
            return None
        job = taken.job
        lease = lease_of(job, worker_id, attempt=job.attempt, claimed_s=claimed_s)
        if lease is None:  # otherwise no worker would ever reach the jobs behind it
            settle(self._session, job, JobStatus.FAILED, now=now, error=UNREADABLE)
        else:
            announce(self._session, job, now=now)
            lease = replace(lease, is_replanned=taken.is_replanned)
        return lease

    def begin(self, lease: Lease, *, after_step: int, now: datetime) -> None:
        """Start training, or resume after `after_step`: later rows of the loss log are deleted.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        progress = dict.fromkeys(("total_steps", "epoch", "train_loss", "valid_loss"))
        self._update(lease, trained_steps=after_step, **({} if after_step else progress))
        # A newer state, which could not be read, has lost its part of the loss log.
        for table in (StepRow, SavedState):
            is_later = (table.job_id == lease.job_id, table.step > after_step)
            self._session.execute(delete(table).where(*is_later))
        attempt = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt)
        self._session.execute(update(Attempt).where(*attempt).values(from_step=after_step))
        if after_step:
            self.note(lease, f"Fine-tuning job resumed after step {after_step}", now=now)
            is_read = lease.plan is None or lease.plan.numerics == NUMERICS_VERSION
            if lease.is_replanned and is_read:
                self.note(lease, _INEXACT, now=now, level="warn")
        else:
            self.note(lease, "Fine-tuning job started", now=now)
        self.note(lease, f"Loading base model {lease.base_model}", now=now)

    def renew(self, lease: Lease, *, until: datetime) -> RequestedAction:
        """Extend the lease to `until`. Returns what the user has asked the job to do.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        # With its time of change, every index of the table would have to be written as well.
        change = {"lease_expires_at": until, "updated_at": Job.updated_at}
        return RequestedAction.of(self._update(lease, **change))

    def read_requested_action(self, lease: Lease) -> RequestedAction:
        """Return what the user has asked the job to do. Writes nothing.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        query = select(Job).where(*_is_held(lease)).options(lazyload(Job.metadata_items))
        return RequestedAction.of(_require_held(self._session.scalar(query), lease))

    def start(self, lease: Lease, *, total_steps: int, plan: StoredPlan | None = None) -> None:
        """Record how many steps the job will take, once its data is tokenized.

        Args:
            plan: how it is computed, once that is decided. None keeps what is stored.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        planned = {} if plan is None else {"plan": plan.model_dump(mode="json")}
        self._update(lease, total_steps=total_steps, **planned)

    def record_steps(
        self,
        lease: Lease,
        rows: Sequence[StepMetrics],
        *,
        tokens_per_second: float | None,
        estimated_finish_at: datetime | None,
    ) -> None:
        """Append rows to the loss log. They follow the rows recorded before.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        evaluated = [row.valid_loss for row in rows if row.valid_loss is not None]
        self._update(
            lease,
            trained_steps=rows[-1].step,
            epoch=rows[-1].epoch,
            not_before=None,
            waiting_reason=None,
            train_loss=rows[-1].train_loss,
            **({"valid_loss": evaluated[-1]} if evaluated else {}),
            tokens_per_second=tokens_per_second,
            estimated_finish_at=estimated_finish_at,
        )
        # The same rows may be there already, from a commit whose confirmation was lost.
        self._session.execute(
            delete(StepRow).where(StepRow.job_id == lease.job_id, StepRow.step >= rows[0].step)
        )
        self._session.add_all(
            StepRow(
                job_id=lease.job_id,
                step=row.step,
                attempt=lease.attempt,
                metrics=row.model_dump(),
                train_loss=row.train_loss,
                valid_loss=row.valid_loss,
            )
            for row in rows
        )

    def hold(self, lease: Lease) -> Job:
        """Lock the job and make the rest of this transaction conditional on still owning it.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        return _require_held(lock_job(self._session, *_is_held(lease)), lease)

    def finish(
        self, lease: Lease, status: JobStatus, *, now: datetime, error: JobError | None = None
    ) -> None:
        """End the job in a terminal status.

        Raises:
            LeaseLostError: the job is no longer this attempt's.
        """
        settle(self._session, self.hold(lease), status, now=now, error=error)

    def note(self, lease: Lease, message: str, *, now: datetime, level: Level = "info") -> None:
        """Add an event that tells the user something."""
        EventRepository(self._session, lease.project_id).add(
            lease.job_id, message, now=now, level=level
        )

    def _update(self, lease: Lease, **values: Any) -> Job:
        job = self._session.scalars(
            update(Job).where(*_is_held(lease)).values(values).returning(Job),
            execution_options={"populate_existing": True},
        ).one_or_none()
        return _require_held(job, lease)


def _is_held(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    """The fence."""
    return (
        Job.id == lease.job_id,
        Job.attempt == lease.attempt,
        Job.worker_id == lease.worker_id,
        Job.status == JobStatus.RUNNING,
    )


def _require_held(job: Job | None, lease: Lease) -> Job:
    if job is None:
        raise LeaseLostError(lease.job_id, lease.attempt)
    return job


def lease_of(job: Job, worker_id: str, *, attempt: int, claimed_s: float) -> Lease | None:
    """The lease of an attempt. None if this version cannot read the job's settings."""
    try:
        config = TrainingConfig.model_validate(job.config)
        parent = None if job.parent is None else ParentAdapter.model_validate(job.parent)
        plan = None if job.plan is None else StoredPlan.model_validate(job.plan)
    except ValidationError:
        return None
    return Lease(
        job_id=job.id,
        project_id=job.project_id,
        attempt=attempt,
        worker_id=worker_id,
        claimed_s=claimed_s,
        base_model=job.base_model,
        base_model_sha256=job.base_model_sha256,
        training_file_id=job.training_file_id,
        validation_file_id=job.validation_file_id,
        fine_tuned_model=job.fine_tuned_model,
        config=config,
        integrations=job.integrations or (),
        parent=parent,
        memory_bytes=job.needed_memory_bytes,
        plan=plan,
    )
