"""Wire format of fine-tuning jobs, their events and checkpoints: OpenAI's fields, then ours."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from app.core.errors import InvalidRequestError
from app.core.job.status import JobStatus
from app.schemas.hyperparameters import Hyperparameters
from app.schemas.strict import RequestBody

MAX_LABELS = 16
"""Pairs of metadata that a job may have."""

PRIORITIES = range(-1000, 1000 + 1)

_MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class SupervisedMethod(RequestBody):
    hyperparameters: Hyperparameters | None = None


class MethodCreate(RequestBody):
    type: str
    """Training method. Only `supervised` is offered."""
    supervised: SupervisedMethod | None = None
    dpo: Any = None
    """Settings of direct preference optimization, which is not offered. Must be null or absent."""
    reinforcement: Any = None
    """Settings of reinforcement fine-tuning, which is not offered. Must be null or absent."""

    @field_validator("dpo", "reinforcement")
    @classmethod
    def _must_be_absent(cls, value: Any, checked: ValidationInfo) -> Any:
        if value is not None and "type" in checked.data:  # else its type says it all
            raise PydanticCustomError(
                "unsupported_method", "This method is not offered here; use 'supervised'"
            )
        return value

    @field_validator("type")
    @classmethod
    def _must_be_offered(cls, value: str) -> str:
        if value != "supervised":
            raise PydanticCustomError(
                "unsupported_method",
                "The method {method} is not offered here; use 'supervised'",
                {"method": repr(value[:40])},
            )
        return value


class JobCreate(RequestBody):
    model: str = Field(min_length=1, max_length=256)
    """A base model: its id in the catalogue, one of its aliases, or its hub repository."""
    training_file: str
    """Id of an uploaded file."""
    validation_file: str | None = None
    """Id of an uploaded file on which the loss is measured, never learned."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    """Becomes part of the tuned model's name."""
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """The same seed and data give the same adapter, on one machine; chosen when absent."""
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(default=None, max_length=MAX_LABELS)
    """Labels of your own; the list of jobs can be filtered by them."""
    method: MethodCreate | None = None
    hyperparameters: Hyperparameters | None = None
    """OpenAI's older place for `method.supervised.hyperparameters`. If both places give a
    hyperparameter a value, the values must be equal; null and "auto" are no value."""
    integrations: list[Any] | None = None
    """Integrations with other services. None is offered, so the list must be empty or absent."""

    # From here on, ours; the stock client is given them in `extra_body`.
    auto_start: Annotated[bool | None, AfterValidator(lambda value: value is not False)] = True
    """False leaves the job paused, checked and ready, until it is resumed."""
    priority: Annotated[
        int | None,
        Field(ge=PRIORITIES.start, le=PRIORITIES.stop - 1),
        AfterValidator(lambda value: value or 0),
    ] = 0
    """Queue priority. Jobs with a higher priority run first; among equals, the oldest."""

    @field_validator("integrations")
    @classmethod
    def _must_be_empty(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise PydanticCustomError(
                "unsupported_integration", "No integration is offered here; leave the list empty"
            )
        return value

    def knobs(self) -> dict[str, Any]:
        """The hyperparameters that were given a value.

        Raises:
            InvalidRequestError: one of them has two values, each in another place.
        """
        supervised = self.method and self.method.supervised
        older = _given(self.hyperparameters)
        newer = _given(supervised and supervised.hyperparameters)
        for name in older.keys() & newer.keys():
            if older[name] != newer[name]:
                first, second = (json.dumps(value)[:200] for value in (older[name], newer[name]))
                raise InvalidRequestError(
                    f"'{name}' is {first} in 'hyperparameters' and {second} in "
                    "'method.supervised.hyperparameters'. Give it in one place, or give both the "
                    "same value.",
                    param=f"hyperparameters.{name}",
                )
        return older | newer

    def content(self) -> dict[str, Any]:
        """What is asked for: the same for every way to write it, with null as if it were absent.

        A field that is absent is not in it, so a later version, which has more, knows it again.
        """
        return self.model_dump(mode="json", exclude_none=True)


def _given(place: Hyperparameters | None) -> dict[str, Any]:
    return {} if place is None else place.model_dump(exclude_none=True)


class JobRerun(RequestBody):
    """Options of a rerun. The new job has the files, settings and seed of the old one."""

    from_: Literal["saved_state"] | None = Field(default=None, alias="from")
    """`saved_state` resumes from the newest saved state of a job that failed or was cancelled; null
    begins with the first step."""


class _Read(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class JobErrorRead(_Read):
    code: str
    message: str
    param: str | None
    errors: list[dict[str, Any]] = []
    """The first 50 problems of a bad data set, each with line, path, code and message."""


class JobRead(_Read):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    """Unix time at which a running job will end, by its speed so far."""
    status: JobStatus
    """A paused job is shown as `queued` if the service has the setting
    `TUNERY_SHOW_PAUSED_AS=queued`; its `queue_position` is null."""
    model: str
    """The base model's id in the catalogue."""
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    """Id of the loss log, a CSV file, once the job has succeeded. Empty until then."""
    result_checkpoint: str | None
    """Id of the checkpoint that is the job's result: the last one or, where the job may stop early,
    the one of the best evaluation. Null unless the job has succeeded. The checkpoint is deleted
    together with the tuned model."""
    trained_tokens: int | None
    seed: int
    error: JobErrorRead | None
    hyperparameters: dict[str, Any]
    """Every knob with the value it has; nothing is `auto` here."""
    method: dict[str, Any]
    integrations: list[Any] = []
    metadata: dict[str, str] | None
    user_provided_suffix: str | None

    # From here on, ours.
    started_at: int | None
    cancel_requested_at: int | None
    """Set as soon as a running job was asked to stop; its status follows within seconds."""
    pause_requested_at: int | None
    """Set while a running job is asked to pause; null again once it has, or was resumed."""
    priority: int
    rerun_of: str | None
    """Id of the job that this one repeats. That job may have been deleted."""
    resumed_from_step: int | None
    """Step of the saved state that this job was created with, which the job named by `rerun_of` had
    saved. Null for a job that begins with its first step."""
    attempt: int
    """Number of times that a worker has started or resumed the job."""
    queue_position: int | None
    """1 for the job that is next; null for one that does not wait in the queue."""
    trained_steps: int
    total_steps: int | None
    """Optimizer steps in all; null until the data is tokenized."""
    progress: float
    """Fraction of all steps done, 0 to 1."""
    epoch: float | None
    train_loss: float | None
    """Training loss of the last step, in nats per learned token."""
    valid_loss: float | None
    """Newest loss on the validation file."""
    tokens_per_second: float | None
    """Real tokens, never padding, over the training loop so far."""


class JobDeleted(_Read):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


class EventRead(_Read):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetricsRead(_Read):
    step: int
    train_loss: float
    train_mean_token_accuracy: float
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class CheckpointRead(_Read):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    """Name of the checkpoint as a model: the tuned model's own name for the job's result, and that
    name with `:ckpt-step-N` after it for every other checkpoint."""
    is_result: bool
    """Whether this checkpoint is the job's result. False for all while the job runs."""
    step_number: int
    metrics: CheckpointMetricsRead
    result_files: list[str]
    """Ids of the adapter's files; `GET /v1/files/{id}` gives a file's name."""


class MetricsRead(_Read):
    object: Literal["list"] = "list"
    data: list[dict[str, float | int | None]]
    """The loss log: one row per optimizer step."""
    has_more: Literal[False] = False
