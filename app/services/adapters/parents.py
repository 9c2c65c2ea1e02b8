"""The adapter that a job continues: finds it, and keeps it until the job has ended.

The caller owns the transaction.
"""

from dataclasses import dataclass

from app.core.access import Caller
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import InvalidRequestError, StateConflictError
from app.core.job.artifacts import ADAPTER_WEIGHTS_NAME
from app.core.job.lora_shape import LoraShape, ParentAdapter
from app.core.job.training_config import TrainingConfig
from app.services.adapters.lookup import get_adapter_of


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter that a new job can continue."""

    adapter: ParentAdapter
    job: Job
    """Job that made the adapter."""

    @property
    def shape(self) -> LoraShape:
        return TrainingConfig.model_validate(self.job.config).lora


def find_parent(session: Session, caller: Caller, name: str) -> Parent:
    """The adapter of a tuned model, or of a checkpoint named `MODEL:ckpt-step-N`.

    Raises:
        NotFoundError: no tuned model and no checkpoint has this name.
    """
    checkpoint, job = get_adapter_of(session, caller, name)
    (weights,) = (file for file in checkpoint.files if file.filename == ADAPTER_WEIGHTS_NAME)
    adapter = ParentAdapter(
        model=name,
        job_id=job.id,
        checkpoint_id=checkpoint.id,
        step=checkpoint.step,
        sha256=weights.sha256,
    )
    return Parent(adapter, job)


def keep_parent(session: Session, caller: Caller, parent: ParentAdapter) -> None:
    """Lock the adapter, so that nobody deletes it before the job that continues it is committed.

    Raises:
        InvalidRequestError: it was deleted.
    """
    checkpoints = CheckpointRepository(session, caller.project_id)
    if not checkpoints.lock_to_continue(parent.checkpoint_id):
        raise InvalidRequestError(
            f"The adapter of {parent.model} was deleted, so it cannot be continued. Create a job "
            "that continues another model, or tunes a base model.",
            code="parent_deleted",
            param="model",
        )


def require_unneeded(
    session: Session, caller: Caller, what: str, job_id: str, checkpoint_id: str | None = None
) -> None:
    """Lock the checkpoints of a job before they are deleted, unless one is being continued.

    Args:
        what: what the checkpoints are, for the message: `the adapter of MODEL`.
        job_id: the job that made them.
        checkpoint_id: the only one that will be deleted. None if all are.

    Raises:
        StateConflictError: an unfinished job continues one.
    """
    checkpoints = CheckpointRepository(session, caller.project_id)
    needed = checkpoints.lock_to_delete(job_id, checkpoint_id)
    if needed:
        raise StateConflictError(
            f"The job {min(needed.values())} continues {what}, and needs it until it ends. Cancel "
            "that job, or wait until it has ended.",
            code="adapter_in_use",
        )
