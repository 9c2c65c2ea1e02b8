"""What a caller may ask of what a job has made. The caller owns the transaction."""

from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job
from app.core.errors import NotFoundError, StateConflictError
from app.core.job.status import JobStatus

_MAX_STEP_DIGITS = 9
"""As in the name of a checkpoint's directory; more is no step."""


def get_adapter(session: Session, job_id: str, checkpoint: str | None) -> Checkpoint:
    """The final checkpoint of a job, or the one named.

    Args:
        checkpoint: the id or the step of a checkpoint.

    Raises:
        NotFoundError: there is no such job or checkpoint, or the adapter was deleted.
        StateConflictError: the job has no final adapter, or not yet.
    """
    job = JobRepository(session).get(job_id)
    checkpoints = CheckpointRepository(session)
    if checkpoint is not None:
        is_step = checkpoint.isdecimal() and len(checkpoint) <= _MAX_STEP_DIGITS
        found = (
            checkpoints.find_at_step(job_id, int(checkpoint))
            if is_step
            else checkpoints.find(job_id, checkpoint)
        )
        if found is None:
            raise NotFoundError(
                f"Job {job_id} has no checkpoint {checkpoint[:80]}.",
                code="checkpoint_not_found",
                param="checkpoint",
            )
        return found
    if job.result_checkpoint_id is None:
        raise StateConflictError(_why_no_adapter(job), code="adapter_not_ready")
    result = checkpoints.find(job_id, job.result_checkpoint_id)
    if result is None:
        raise NotFoundError(
            f"The adapter of job {job_id} was deleted, with its model {job.fine_tuned_model}.",
            code="adapter_deleted",
        )
    return result


def _why_no_adapter(job: Job) -> str:
    ending = f"is {job.status}" if job.status is not JobStatus.FAILED else "has failed"
    return (
        f"Job {job.id} {ending}, so it has no final adapter. A checkpoint that it has made can be "
        "asked for with ?checkpoint=STEP."
    )
