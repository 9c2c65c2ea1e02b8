"""How a job comes to be: as a request describes it, or as a repetition of another job."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.core.base_models import Catalogue, CatalogueEntry, InstalledModel
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import File, Job, JobMetadata
from app.core.errors import InvalidRequestError
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.services.job_settings import (
    DEFAULT_LEARNING_RATE,
    check_limits,
    refuse_without_validation,
    resolve_config,
)
from app.services.saved_states import hand_over_saved_state, take_saved_state

_SUSPICIOUS_MULTIPLIER = 1e-2
"""Below this, a multiplier is more likely a learning rate that was put into the wrong field."""
_NAME_LENGTH = 12
"""Characters of a job's id at the end of its model's name: 60 random bits."""


def create_job(
    session: Session,
    request: JobCreate,
    *,
    catalogue: Catalogue,
    organization: str,
    now: datetime,
) -> Job:
    """Put a job into the queue, or leave it paused, with every setting resolved.

    Raises:
        InvalidRequestError: the model, a file or a setting is not one that can be used, or two of
            them do not go together.
        NotFoundError: there is no such file.
    """
    entry, installed = _find_installed(catalogue, request.model)
    named = {"training_file": request.training_file, "validation_file": request.validation_file}
    _check_files(session, named, entry, now=now)
    knobs = request.knobs()
    config = resolve_config(knobs, entry, seed=request.seed)
    if request.validation_file is None:
        refuse_without_validation(config)
    job = _add_job(
        session,
        installed,
        organization,
        created_at=now,
        status=JobStatus.QUEUED if request.auto_start else JobStatus.PAUSED,
        priority=request.priority,
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        suffix=request.suffix,
        config=config.model_dump(mode="json"),
        learning_rate_multiplier=knobs.get(
            "learning_rate_multiplier", config.learning_rate / DEFAULT_LEARNING_RATE
        ),
        metadata_items=_labels(request.metadata or {}),
    )
    _warn_about_multiplier(session, job, knobs, now=now)
    return job


def rerun_job(
    session: Session,
    job_id: str,
    *,
    catalogue: Catalogue,
    organization: str,
    held_for: timedelta | None = None,
    now: datetime,
) -> Job:
    """Put a job into the queue that repeats another, whatever has become of that one.

    It has the same data, base model, settings and seed, labels, suffix and priority.

    Args:
        held_for: how long saved states are kept, for a job that resumes from the saved state of
            the other one, which it takes over; None for one that begins with its first step.

    Raises:
        NotFoundError: no job has this id, or a file of it is gone.
        InvalidRequestError: the base model is gone, or is another one by now.
        StateConflictError: there is no saved state to resume from.
    """
    original = JobRepository(session).get(job_id)
    entry, installed = _find_installed(catalogue, original.base_model)
    if original.base_model_sha256 not in (None, installed.sha256):  # old rows do not say
        raise InvalidRequestError(
            f"The base model {entry.id} has been installed anew since job {job_id} was created, "
            "and its weights are others, so the job cannot be repeated. Create a new one.",
            code="base_model_changed",
            param="model",
        )
    named = {
        "training_file": original.training_file_id,
        "validation_file": original.validation_file_id,
    }
    progress = None if held_for is None else take_saved_state(session, original, held_for, now=now)
    _check_files(session, named, entry, now=None if progress else now)
    check_limits(TrainingConfig.model_validate(original.config), entry)
    job = _add_job(
        session,
        installed,
        organization,
        created_at=now,
        status=JobStatus.QUEUED,
        priority=original.priority,
        rerun_of=original.id,
        training_file_id=original.training_file_id,
        validation_file_id=original.validation_file_id,
        suffix=original.suffix,
        config=original.config,
        learning_rate_multiplier=original.learning_rate_multiplier,
        metadata_items=_labels({item.key: item.value for item in original.metadata_items}),
        **(progress or {}),
    )
    if progress is not None:
        hand_over_saved_state(session, original, job, now=now)
    return job


def _add_job(session: Session, model: InstalledModel, organization: str, **values: Any) -> Job:
    """A job on an installed base model, named after both, in its table."""
    job_id = new_id(IdPrefix.JOB)
    job = Job(
        id=job_id,
        base_model=model.id,
        base_model_sha256=model.sha256,
        fine_tuned_model=_model_name(model.id, organization, values["suffix"], job_id),
        **values,
    )
    JobRepository(session).add(job)
    return job


def _find_installed(catalogue: Catalogue, name: str) -> tuple[CatalogueEntry, InstalledModel]:
    entry = catalogue.find(name)
    found = None if entry is None else catalogue.find_installed(entry.id)
    if entry is not None and found is not None:
        return entry, found
    installed = [one.id for one in catalogue.entries if catalogue.find_installed(one.id)]
    if entry is None:
        known = ", ".join(installed) or "none"
        message = f"There is no base model {name[:100]!r}. Installed: {known}."
    else:
        message = (
            f"The base model {entry.id} is not installed. Run: tunery models install {entry.id}"
        )
    raise InvalidRequestError(message, code="model_not_available", param="model")


def _check_files(
    session: Session,
    named: Mapping[str, str | None],
    entry: CatalogueEntry,
    *,
    now: datetime | None,
) -> None:
    """Check the files by the fields that name them, and keep them until there is a job.

    Args:
        now: a file that has expired by then is gone; None where that does not matter.
    """
    files = FileRepository(session)
    if named["training_file"] == named["validation_file"]:
        raise InvalidRequestError(
            "The validation file must be another file than the training file.",
            param="validation_file",
        )
    for param, file_id in named.items():
        if file_id is not None:
            _check_file(files.get_to_use(file_id, now=now, param=param), entry, param)


def _check_file(file: File, entry: CatalogueEntry, param: str) -> None:
    if file.format is None:
        raise InvalidRequestError(
            f"{file.id} was made by a job; {param} must be an uploaded data set.", param=param
        )
    if file.uses_tools and not entry.supports_tools:
        raise InvalidRequestError(
            f"{file.id} has tools in it, and the chat template of {entry.id} cannot show them.",
            code="tools_not_supported",
            param=param,
        )


def _model_name(base_model: str, organization: str, suffix: str | None, job_id: str) -> str:
    """As OpenAI writes it, and without a slash, which proxies would not leave alone."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower()).strip("-")
    return f"ft:{base_model}:{organization}:{slug}:{job_id[-_NAME_LENGTH:]}"


def _labels(metadata: Mapping[str, str]) -> list[JobMetadata]:
    return [JobMetadata(key=key, value=value) for key, value in metadata.items()]


def _warn_about_multiplier(
    session: Session, job: Job, knobs: dict[str, Any], *, now: datetime
) -> None:
    multiplier = knobs.get("learning_rate_multiplier")
    if multiplier is not None and multiplier < _SUSPICIOUS_MULTIPLIER:
        EventRepository(session).add(
            job.id,
            f"learning_rate_multiplier={multiplier} is a factor on {DEFAULT_LEARNING_RATE}, so "
            f"the learning rate is only {job.config['learning_rate']:.3g}. To set the learning "
            "rate itself, use 'learning_rate'.",
            level="warn",
            now=now,
        )
