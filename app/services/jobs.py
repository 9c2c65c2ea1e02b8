"""What a caller may ask of fine-tuning jobs. The caller owns the transaction."""

import re
import secrets
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from app.core.base_models import Catalogue, CatalogueEntry
from app.core.db.events import EventRepository
from app.core.db.files import FileRepository
from app.core.db.jobs import JobRepository
from app.core.db.models import File, Job, JobMetadata
from app.core.db.session import Session
from app.core.errors import InvalidRequestError, StateConflictError
from app.core.ids import IdPrefix, new_id
from app.core.job_status import JobStatus
from app.core.training_config import LoraShape, TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import LORA_WIRE_NAMES, WIRE_NAMES

_DEFAULT_LEARNING_RATE: float = TrainingConfig.model_fields["learning_rate"].default
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
    """Put a job into the queue, with every setting resolved.

    Raises:
        InvalidRequestError: the model, a file or a setting is not one that can be used, or two of
            them do not go together.
    """
    entry = _installed_entry(catalogue, request.model)
    _check_files(session, request, entry, now=now)
    knobs = request.knobs()
    config = resolve_config(knobs, entry, seed=request.seed)
    if request.validation_file is None:
        _refuse_without_validation(config)
    job_id = new_id(IdPrefix.JOB)
    job = Job(
        id=job_id,
        status=JobStatus.QUEUED,
        created_at=now,
        base_model=entry.id,
        training_file_id=request.training_file,
        validation_file_id=request.validation_file,
        suffix=request.suffix,
        config=config.model_dump(mode="json"),
        learning_rate_multiplier=knobs.get(
            "learning_rate_multiplier", config.learning_rate / _DEFAULT_LEARNING_RATE
        ),
        fine_tuned_model=_model_name(entry.id, organization, request.suffix, job_id),
        metadata_items=[
            JobMetadata(key=key, value=value) for key, value in (request.metadata or {}).items()
        ],
    )
    JobRepository(session).add(job)
    _warn_about_multiplier(session, job, knobs, now=now)
    return job


def cancel_job(session: Session, job_id: str, *, now: datetime) -> Job:
    """Stop a job as soon as possible.

    A queued job is cancelled at once. A running job is only marked, and its worker stops it
    within seconds. Asking twice is the same as asking once.

    Raises:
        NotFoundError: no job has this id.
        StateConflictError: the job has already succeeded or failed.
    """
    jobs = JobRepository(session)
    cancelled = jobs.request_cancel(job_id, now=now)
    if cancelled is not None:
        return cancelled
    job = jobs.get(job_id)
    if job.status is not JobStatus.CANCELLED:
        raise StateConflictError(
            f"Job {job_id} has already {job.status}, so it cannot be cancelled.",
            code="job_not_cancellable",
        )
    return job


def resolve_config(
    knobs: dict[str, Any], entry: CatalogueEntry, *, seed: int | None
) -> TrainingConfig:
    """Give every setting its value.

    Args:
        knobs: what the caller set, under its names on the wire.

    Raises:
        InvalidRequestError: a setting is more than the base model allows, or two exclude each
            other.
    """
    values, lora = _defaults_for(entry)
    values |= {WIRE_NAMES[wire]: knobs[wire] for wire in knobs.keys() & WIRE_NAMES.keys()}
    lora |= {LORA_WIRE_NAMES[wire]: knobs[wire] for wire in knobs.keys() & LORA_WIRE_NAMES.keys()}
    if "lora_target_modules" in knobs:
        lora["target_modules"] = _target_modules(knobs["lora_target_modules"], entry)
    if "learning_rate_multiplier" in knobs:
        values["learning_rate"] = _multiplied_learning_rate(knobs)
    if "gradient_accumulation_steps" in knobs:
        values["batch_size"] = knobs.get("batch_size", 1) * knobs["gradient_accumulation_steps"]
    values["seed"] = secrets.randbelow(2**31) if seed is None else seed
    try:
        config = TrainingConfig(lora=LoraShape(**lora), **values)
    except ValidationError as error:  # of what was computed here; the rest was checked before
        first = error.errors()[0]
        name = str(first["loc"][-1])
        raise _bad_knob(name, f"'{name}' becomes {first['input']:g}. {first['msg']}.") from error
    return _within_limits(config, entry)


def _defaults_for(entry: CatalogueEntry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults that this base model needs to be other than the reference's."""
    usual = LoraShape()
    usual_length: int = TrainingConfig.model_fields["max_sequence_tokens"].default
    targets = tuple(name for name in usual.target_modules if name in entry.target_modules)
    return (
        {"max_sequence_tokens": min(usual_length, entry.context_length)},
        {
            "rank": min(usual.rank, entry.max_lora_rank),
            "target_modules": targets or entry.target_modules,
        },
    )


def _installed_entry(catalogue: Catalogue, name: str) -> CatalogueEntry:
    entry = catalogue.find(name)
    if entry is not None and catalogue.find_installed(entry.id) is not None:
        return entry
    installed = [one.id for one in catalogue.entries if catalogue.find_installed(one.id)]
    if entry is None:
        known = ", ".join(installed) or "none"
        message = f"There is no base model {name[:100]!r}. Installed: {known}."
    else:
        message = f"The base model {entry.id} is not installed. Run: make model MODEL={entry.id}"
    raise InvalidRequestError(message, code="model_not_available", param="model")


def _check_files(
    session: Session, request: JobCreate, entry: CatalogueEntry, *, now: datetime
) -> None:
    files = FileRepository(session)
    named = {"training_file": request.training_file, "validation_file": request.validation_file}
    if request.training_file == request.validation_file:
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


def _target_modules(asked: list[str] | str, entry: CatalogueEntry) -> tuple[str, ...]:
    if asked == "all-linear":
        return entry.target_modules
    unknown = [name for name in asked if name not in entry.target_modules]
    if unknown or not asked:
        offered = ", ".join(entry.target_modules)
        what = f"{unknown[0][:80]!r} is not a module" if unknown else "Name at least one module"
        raise _bad_knob("lora_target_modules", f"{what} that LoRA may target here: {offered}.")
    return tuple(dict.fromkeys(asked))


def _multiplied_learning_rate(knobs: dict[str, Any]) -> float:
    if "learning_rate" in knobs:
        raise _bad_knob(
            "learning_rate_multiplier",
            "Give either 'learning_rate' or 'learning_rate_multiplier', not both.",
        )
    return _DEFAULT_LEARNING_RATE * knobs["learning_rate_multiplier"]


def _within_limits(config: TrainingConfig, entry: CatalogueEntry) -> TrainingConfig:
    if config.lora.rank > entry.max_lora_rank:
        raise _bad_knob("lora_r", f"The highest rank for {entry.id} is {entry.max_lora_rank}.")
    if config.max_sequence_tokens > entry.context_length:
        raise _bad_knob(
            "context_length", f"{entry.id} reads at most {entry.context_length} tokens."
        )
    return config


def _refuse_without_validation(config: TrainingConfig) -> None:
    for name in ("n_evals", "early_stopping_patience"):
        if getattr(config, name) is not None:
            raise _bad_knob(name, f"'{name}' needs a validation_file to evaluate on.")


def _bad_knob(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=f"hyperparameters.{name}")


def _model_name(base_model: str, organization: str, suffix: str | None, job_id: str) -> str:
    """As OpenAI writes it, and without a slash, which proxies would not leave alone."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower()).strip("-")
    return f"ft:{base_model}:{organization}:{slug}:{job_id[-_NAME_LENGTH:]}"


def _warn_about_multiplier(
    session: Session, job: Job, knobs: dict[str, Any], *, now: datetime
) -> None:
    multiplier = knobs.get("learning_rate_multiplier")
    if multiplier is not None and multiplier < _SUSPICIOUS_MULTIPLIER:
        EventRepository(session).add(
            job.id,
            f"learning_rate_multiplier={multiplier} is a factor on {_DEFAULT_LEARNING_RATE}, so "
            f"the learning rate is only {job.config['learning_rate']:.3g}. To set the learning "
            "rate itself, use 'learning_rate'.",
            level="warn",
            now=now,
        )
