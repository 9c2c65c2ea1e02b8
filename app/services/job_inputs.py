"""Checks that a new job can use its base model and its files. The caller owns the transaction."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.access import Caller
from app.core.base_models import Catalogue, CatalogueEntry, InstalledModel
from app.core.dataset.formats import DatasetFormat
from app.core.db.repositories.files import FileRepository
from app.core.db.session import Session
from app.core.db.tables import File, Job
from app.core.errors import InvalidRequestError
from app.core.job.integrations import LABELS
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import Method, Recipe, TrainingConfig
from app.core.settings import Settings
from app.core.stored_models.lookup import find_same, find_usable, list_usable, read_facts
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import as_hyperparameters
from app.services.adapters.lookup import TUNED_PREFIX
from app.services.adapters.parents import Parent, find_parent, keep_parent
from app.services.job_settings import check_layers, check_validation
from app.services.recipe_choice import HyperparameterRequest


def find_installed(
    session: Session, catalogue: Catalogue, name: str
) -> tuple[CatalogueEntry, InstalledModel]:
    """The base model of this name.

    Raises:
        InvalidRequestError: it does not exist or is not installed.
    """
    entry = catalogue.find(name)
    installed = None if entry is None else find_usable(session, catalogue, entry.id)
    if entry is not None and installed is not None:
        return entry, installed
    if entry is None:
        known = ", ".join(each.id for each, _ in list_usable(session, catalogue)) or "none"
        message = f"There is no base model {name[:100]!r}. Installed: {known}."
    else:
        message = (
            f"The base model {entry.id} is not installed. Run: tunery models install {entry.id}"
        )
    raise InvalidRequestError(message, code="model_not_available", param="model")


def find_base_of(
    session: Session, catalogue: Catalogue, job: Job, consequence: str
) -> tuple[CatalogueEntry, InstalledModel]:
    """The base model of a job, if it still has the weights that the job was created for.

    Args:
        session: of the transaction.
        catalogue: the base models.
        job: the job.
        consequence: what cannot be done otherwise, as the end of a sentence.

    Raises:
        InvalidRequestError: it is not installed, or has other weights.
    """
    entry = catalogue.find(job.base_model)
    same = None if entry is None else find_same(session, catalogue, entry.id, job.base_model_sha256)
    if entry is not None and same is not None:
        return entry, same
    entry, installed = find_installed(session, catalogue, job.base_model)
    if job.base_model_sha256 not in (None, installed.sha256):  # null in old rows
        raise InvalidRequestError(
            f"Base model {entry.id} was reinstalled after job {job.id} was created and its weights "
            f"have changed, so {consequence}. Create a new job.",
            code="base_model_changed",
            param="model",
        )
    return entry, installed


@dataclass(frozen=True, slots=True)
class JobStart:
    """What a new job starts from."""

    entry: CatalogueEntry
    installed: InstalledModel
    parent: Parent | None = None
    """Adapter that the job continues. None for a new adapter of the base model."""

    @property
    def shape(self) -> LoraShape | None:
        """Shape of that adapter, which the job keeps."""
        return self.parent and self.parent.shape


def find_start(session: Session, caller: Caller, catalogue: Catalogue, name: str) -> JobStart:
    """What the `model` of a request names: a base model, a tuned model or a checkpoint.

    Raises:
        InvalidRequestError: the base model does not exist, is not installed, or has other weights
            than when the tuned model was made.
        NotFoundError: no tuned model has this name.
    """
    if not name.startswith(TUNED_PREFIX):
        return JobStart(*find_installed(session, catalogue, name))
    parent = find_parent(session, caller, name)
    consequence = f"the adapter of {name} cannot be continued"
    return JobStart(*find_base_of(session, catalogue, parent.job, consequence), parent)


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request for a job that can be created."""

    start: JobStart
    asked: HyperparameterRequest
    config: TrainingConfig
    """All hyperparameters, resolved."""

    @property
    def shown(self) -> dict[str, Any]:
        """All hyperparameters, resolved, by their names on the wire."""
        return as_hyperparameters(self.config, self.asked.learning_rate_multiplier(self.config))


def check_request(
    session: Session,
    caller: Caller,
    request: JobCreate,
    catalogue: Catalogue,
    *,
    default_recipe: Recipe,
    now: datetime,
) -> CheckedRequest:
    """Check a request for a job, and lock what it names until the end of the transaction.

    Raises:
        InvalidRequestError: the model, a file or a hyperparameter cannot be used, or two of them
            cannot be combined.
        NotFoundError: a file or a tuned model does not exist.
    """
    start = find_start(session, caller, catalogue, request.model)
    if start.parent is not None:
        keep_parent(session, caller, start.parent.adapter)
    files = (request.training_file, request.validation_file)
    data = check_files(session, caller, *files, start.entry, method=request.method_type, now=now)
    facts = read_facts(session, catalogue, start.installed)
    asked = HyperparameterRequest.of(
        request,
        start.entry,
        data,
        shape=start.shape,
        parameters=facts.parameters,
        default_recipe=default_recipe,
    )
    config = asked.resolve(today=now.date())
    check_layers(config, facts.layers)
    check_validation(config, has_file=request.validation_file is not None)
    return CheckedRequest(start, asked, config)


def check_files(
    session: Session,
    caller: Caller,
    training_file: str,
    validation_file: str | None,
    entry: CatalogueEntry,
    *,
    method: Method,
    now: datetime | None,
) -> File:
    """Check the files, and lock them until the job that uses them is committed.

    Args:
        method: training method, which needs preferences or cannot use them.
        now: files that have expired by then do not exist; None ignores expiry.

    Returns:
        The training file.

    Raises:
        InvalidRequestError: a file cannot be used, or both are the same.
        NotFoundError: a file does not exist.
    """
    files = FileRepository(session, caller.project_id)
    if training_file == validation_file:
        raise InvalidRequestError(
            "The validation file must be another file than the training file.",
            param="validation_file",
        )
    training = files.get_to_use(training_file, now=now, param="training_file")
    check_file(training, entry, method, "training_file")
    if validation_file is not None:
        validation = files.get_to_use(validation_file, now=now, param="validation_file")
        check_file(validation, entry, method, "validation_file")
    return training


def check_file(file: File, entry: CatalogueEntry, method: Method, param: str) -> None:
    """Check that a base model can be trained on a file.

    Args:
        method: training method, which needs preferences or cannot use them.
        param: field of the request that names the file.

    Raises:
        InvalidRequestError: it cannot.
    """
    if file.format is None:
        raise InvalidRequestError(
            f"{file.id} was made by a job; {param} must be an uploaded dataset.", param=param
        )
    if (file.format == DatasetFormat.PREFERENCE) != (method == "dpo"):
        raise InvalidRequestError(
            f"{file.id} has the format {file.format}, and a job with the method '{method}' "
            + (
                "needs preferences. Use a file with two answers to each prompt, as docs/files.md "
                "describes it, or set the type of the method to 'supervised'."
                if method == "dpo"
                else "needs one answer per example. Use such a file, or set the type of the method "
                "to 'dpo'."
            ),
            code="method_format_mismatch",
            param=param,
        )
    if file.uses_tools and not entry.supports_tools:
        raise InvalidRequestError(
            f"{file.id} contains tools, and the chat template of {entry.id} cannot show them.",
            code="tools_not_supported",
            param=param,
        )


def require_trackers(types: Iterable[str], settings: Settings) -> None:
    """Check that the operator has set up every tracker of a job.

    Args:
        types: types of the job's integrations.
        settings: those of the operator.

    Raises:
        InvalidRequestError: one of them is not set up.
    """
    set_up = {"wandb": settings.wandb_api_key, "mlflow": settings.mlflow_tracking_uri}
    for each in types:
        if not set_up[each]:
            raise InvalidRequestError(
                f"{LABELS[each]} is not set up on this service. Leave the integration out, or ask "
                "the operator to set it up: docs/trackers.md says how.",
                code="unsupported_integration",
                param="integrations",
            )
