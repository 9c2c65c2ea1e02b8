"""Creates jobs from requests. The caller owns the transaction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.access import Caller
from app.core.base_models import Catalogue, InstalledModel
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.session import Session
from app.core.db.tables import Job, JobMetadata
from app.core.disk import require_room
from app.core.ids import IdPrefix, new_id
from app.core.job.lora_shape import ParentAdapter
from app.core.job.training_config import Recipe
from app.core.settings import Settings
from app.schemas.fine_tuning_jobs import JobCreate
from app.services.adapters.lookup import name_model
from app.services.idempotency import IdempotentRequest, RequestOrigin
from app.services.job_inputs import CheckedRequest, check_request, require_trackers
from app.services.quotas import require_job


@dataclass(frozen=True, slots=True)
class NewJob:
    job: Job
    is_replay: bool
    """True if an earlier sending of the same request made the job."""


def create_job_once(
    session: Session,
    caller: Caller,
    request: JobCreate,
    origin: RequestOrigin,
    *,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> NewJob:
    """Create a job, or find the one that this very request has created before.

    Raises:
        InvalidRequestError: the idempotency key belongs to another request, or as `create_job`.
        NotFoundError: as `create_job`.
        StorageFullError: the disk has no room for a new job.
        QuotaExceededError: the project may have no more jobs.
    """

    def create() -> Job:
        return create_job(
            session,
            caller,
            request,
            catalogue=catalogue,
            organization=settings.organization,
            default_recipe=settings.default_recipe,
            now=now,
        )

    once = IdempotentRequest(session, caller, origin, "create", request.content(), now=now)
    return make_once(once, create, settings)


def make_once(once: IdempotentRequest, make: Callable[[], Job], settings: Settings) -> NewJob:
    """Make a job, unless this very request has made one before.

    Raises:
        InvalidRequestError: the idempotency key belongs to another request, or a tracker of the job
            is not set up.
        StorageFullError: the disk has no room for a new job.
    """
    earlier = once.find_job()
    if earlier is not None:
        return NewJob(earlier, is_replay=True)
    require_room(settings)
    job = make()
    require_trackers((each["type"] for each in job.integrations or ()), settings)
    once.remember(job)
    return NewJob(job, is_replay=False)


def create_job(
    session: Session,
    caller: Caller,
    request: JobCreate,
    *,
    catalogue: Catalogue,
    organization: str,
    default_recipe: Recipe = "reference",
    now: datetime,
) -> Job:
    """Create a job with every hyperparameter resolved.

    Raises:
        ServiceError: as `check_request` and `add_checked_job`.
    """
    checked = check_request(
        session, caller, request, catalogue, default_recipe=default_recipe, now=now
    )
    return add_checked_job(session, caller, request, checked, organization=organization, now=now)


def add_checked_job(
    session: Session,
    caller: Caller,
    request: JobCreate,
    checked: CheckedRequest,
    *,
    organization: str,
    sweep_id: str | None = None,
    shared: str | None = None,
    now: datetime,
) -> Job:
    """Create the job that a checked request asks for.

    Args:
        shared: as in `DataCheck`, for a job of a sweep.

    Raises:
        QuotaExceededError: the project may have no more jobs.
    """
    start, asked, config = checked.start, checked.asked, checked.config
    job = add_job(
        session,
        caller,
        start.installed,
        organization,
        shared=shared,
        sweep_id=sweep_id,
        created_at=now,
        pause_requested_at=None if request.auto_start else now,
        priority=request.priority,
        allow_inexact_resume=bool(request.allow_inexact_resume),
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        suffix=request.suffix,
        parent=start.parent and start.parent.adapter,
        config=config.model_dump(mode="json"),
        integrations=[each.as_json() for each in request.integrations or ()] or None,
        eval_prompts=request.eval_prompts,
        eval_prompts_at_checkpoints=bool(request.eval_prompts_at_checkpoints),
        learning_rate_multiplier=asked.learning_rate_multiplier(config),
        metadata_items=as_labels(request.metadata or {}),
    )
    events = EventRepository(session, caller.project_id)
    if (warning := asked.warn_about_multiplier(config)) is not None:
        events.add(job.id, warning, level="warn", now=now)
    if (difference := asked.compare_with_auto(config)) is not None:
        events.add(job.id, difference, now=now)
    return job


def add_job(
    session: Session,
    caller: Caller,
    model: InstalledModel,
    organization: str,
    *,
    parent: ParentAdapter | None,
    shared: str | None = None,
    **values: Any,
) -> Job:
    """Add a job on an installed base model. Its tuned model is named after both.

    Raises:
        QuotaExceededError: the project may have no more jobs.
    """
    require_job(session, caller, now=values["created_at"])
    job_id = new_id(IdPrefix.JOB)
    job = Job(
        id=job_id,
        base_model=model.id,
        base_model_sha256=model.sha256,
        parent=parent and parent.model_dump(),
        parent_checkpoint_id=parent and parent.checkpoint_id,
        fine_tuned_model=name_model(model.id, organization, values["suffix"], job_id),
        **values,
    )
    JobRepository(session, caller.project_id).add(job, shared=shared)
    action = audit.Action.JOB_CREATED if job.rerun_of is None else audit.Action.JOB_RERUN
    audit.record(session, caller, action, job_id, now=job.created_at)
    return job


def as_labels(metadata: Mapping[str, str]) -> list[JobMetadata]:
    """The rows of a job's labels."""
    return [JobMetadata(key=key, value=value) for key, value in metadata.items()]
