"""Checks the request for an estimate of a job. The caller owns the transaction."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.compute_choices import compute_choices
from app.core.dataset.tokenizing.messages import EstimateRequest
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Session
from app.core.job.training_config import MACHINE_CACHE_NAME
from app.core.machine.memory import measure_memory
from app.core.settings import Settings
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import as_hyperparameters
from app.services.job_inputs import check_request


@dataclass(frozen=True, slots=True)
class EstimatePlan:
    blob_keys: list[str]
    """Keys of the training file and, if there is one, of the validation file."""
    request: EstimateRequest
    model: str
    """Id of the base model in the catalogue."""
    hyperparameters: dict[str, Any]
    """All hyperparameters with their resolved values, by their names on the wire."""


def plan_estimate(
    session: Session,
    *,
    caller: Caller,
    request: JobCreate,
    catalogue: Catalogue,
    settings: Settings,
    now: datetime,
) -> EstimatePlan:
    """Check a request as if a job were created, and say what its estimate depends on.

    Raises:
        InvalidRequestError: as `create_job`.
        NotFoundError: as `create_job`.
    """
    model, asked, config = check_request(
        session, caller, request, catalogue, default_recipe=settings.default_recipe, now=now
    )
    ids = filter(None, (request.training_file, request.validation_file))
    repository = FileRepository(session, caller.project_id)
    files = [repository.get(file_id, now=now) for file_id in ids]
    workers = WorkerRepository(session)
    return EstimatePlan(
        blob_keys=[file.blob_key for file in files],
        request=EstimateRequest(
            base_model=catalogue.directory(model.id).absolute(),
            data_dir=settings.data_dir.absolute(),
            sandbox=settings.sandbox,
            config=config,
            rows=tuple(file.examples or 1 for file in files),
            compute=compute_choices(settings),
            machine_cache=settings.caches_of(caller.project_id)[MACHINE_CACHE_NAME].absolute(),
            threads=settings.resolved_training_threads,
            memory_bytes=workers.largest_memory() or measure_memory().total,
        ),
        model=model.id,
        hyperparameters=as_hyperparameters(config, asked.learning_rate_multiplier(config)),
    )
