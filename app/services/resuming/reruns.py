"""Creates a job that repeats another job, or goes on from its saved state.

The caller owns the transaction.
"""

from datetime import datetime, timedelta

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import StateConflictError
from app.core.job.lora_shape import ParentAdapter
from app.core.job.training_config import TrainingConfig
from app.core.settings import Settings
from app.schemas.fine_tuning_jobs import JobRerun
from app.services.adapters.parents import keep_parent
from app.services.idempotency import IdempotentRequest, RequestOrigin
from app.services.job_inputs import check_files, find_base_of
from app.services.job_settings import check_limits
from app.services.new_jobs import NewJob, add_job, as_labels, make_once
from app.services.resuming.saved_states import hand_over_saved_state, take_saved_state


def rerun_job_once(
    session: Session,
    caller: Caller,
    job_id: str,
    request: JobRerun,
    origin: RequestOrigin,
    *,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> NewJob:
    """Rerun a job, or find the rerun that this very request has created before.

    Raises:
        InvalidRequestError: the idempotency key belongs to another request, or as `rerun_job`.
        NotFoundError: as `rerun_job`.
        StateConflictError: as `rerun_job`.
        StorageFullError: the disk has no room for a new job.
        QuotaExceededError: the project may have no more jobs.
    """

    def rerun() -> Job:
        return rerun_job(
            session,
            caller,
            job_id,
            catalogue=catalogue,
            organization=settings.organization,
            held_for=timedelta(seconds=settings.held_state_s) if request.from_ else None,
            now=now,
        )

    once = IdempotentRequest(session, caller, origin, "rerun", request.content(job_id), now=now)
    return make_once(once, rerun, settings)


def rerun_job(
    session: Session,
    caller: Caller,
    job_id: str,
    *,
    catalogue: Catalogue,
    organization: str,
    held_for: timedelta | None = None,
    now: datetime,
) -> Job:
    """Create a job that repeats another job, in whatever status that job is.

    It has the same data, model, hyperparameters, seed, labels, integrations, evaluation prompts,
    suffix and priority.

    Args:
        held_for: how long saved states are kept. With it, the new job takes over the saved state
            of the other job and resumes from it; None begins with the first step.

    Raises:
        NotFoundError: no job has this id, or one of its files is gone.
        InvalidRequestError: the base model is gone, or its weights have changed; or the job would
            begin with an adapter that was deleted.
        StateConflictError: there is no saved state to resume from, or the job was imported.
    """
    original = JobRepository(session, caller.project_id).get(job_id)
    if original.imported is not None:
        raise StateConflictError(
            f"Job {job_id} has imported an adapter and trained nothing, so it cannot be repeated. "
            f"Create a job with the model {original.fine_tuned_model}, which continues it.",
            code="job_not_repeatable",
        )
    entry, installed = find_base_of(session, catalogue, original, "the job cannot be repeated")
    parent = None
    if original.parent is not None:
        parent = ParentAdapter.model_validate(original.parent)
        if held_for is None:  # a saved state has all that is trained
            keep_parent(session, caller, parent)
    progress = None
    if held_for is not None:
        progress = take_saved_state(session, caller, original, held_for, now=now)
    files = (original.training_file_id, original.validation_file_id)
    config = TrainingConfig.model_validate(original.config)
    check_files(session, caller, *files, entry, method=config.method, now=None if progress else now)
    check_limits(config, entry)
    job = add_job(
        session,
        caller,
        installed,
        organization,
        created_at=now,
        priority=original.priority,
        allow_inexact_resume=original.allow_inexact_resume,
        rerun_of=original.id,
        training_file_id=original.training_file_id,
        validation_file_id=original.validation_file_id,
        suffix=original.suffix,
        parent=parent,
        config=original.config,
        integrations=original.integrations,
        eval_prompts=original.eval_prompts,
        eval_prompts_at_checkpoints=original.eval_prompts_at_checkpoints,
        learning_rate_multiplier=original.learning_rate_multiplier,
        metadata_items=as_labels({item.key: item.value for item in original.metadata_items}),
        **(progress or {}),
    )
    if progress is not None:
        hand_over_saved_state(session, caller, original, job, now=now)
    return job
