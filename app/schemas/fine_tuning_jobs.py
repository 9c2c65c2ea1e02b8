"""Wire format of fine-tuning jobs: OpenAI's fields, then ours."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from app.core.db.tables import Job
from app.core.errors import InvalidRequestError
from app.core.job.integrations import LABELS, Integration
from app.core.job.lora_shape import ImportedArchive, ParentAdapter
from app.core.job.status import JobStatus
from app.core.job.training_config import Method, Recipe, TrainingConfig
from app.core.settings import Settings
from app.schemas.bodies import ItemRead, RequestBody, ResponseBody, UnixTime
from app.schemas.hyperparameters import AUTO, Hyperparameters, MethodCreate, as_hyperparameters
from app.schemas.job_reports import EvalPrompts

MAX_LABELS = 16
"""Maximum number of metadata pairs of a job."""

PRIORITIES = range(-1000, 1000 + 1)

_MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class JobCreate(RequestBody):
    model: str = Field(min_length=1, max_length=256)
    """Model to tune. A base model is named by its id in the catalogue, one of its aliases, or its
    hub repository. The name of a tuned model, or of one of its checkpoints, continues its adapter,
    which keeps its shape."""
    training_file: str
    """Id of the uploaded file to train on."""
    validation_file: str | None = None
    """Id of an uploaded file for measuring the validation loss. The model is not trained on it."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    """Text that becomes part of the tuned model's name."""
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Random seed. On one machine, the same seed and data give the same adapter. If it is absent,
    the service chooses one."""
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(default=None, max_length=MAX_LABELS)
    """Labels of your own. The list of jobs can be filtered by them."""
    method: MethodCreate | None = None
    hyperparameters: Hyperparameters | None = None
    """OpenAI's older place for the hyperparameters of the method. If both places set a
    hyperparameter, the values must be equal; null and "auto" do not set it."""
    integrations: list[Integration] | None = Field(default=None, max_length=len(LABELS))
    """Trackers that get the metrics of the job, at most one of each type. The operator of the
    service sets up which types are offered."""

    # From here on, ours; the stock client is given them in `extra_body`.
    recipe: Recipe | None = None
    """Source of the hyperparameters that the request leaves out: `reference` for the defaults,
    `auto` for values that fit the size of the base model and of the training file. It decides
    `n_epochs`, `learning_rate`, `lora_r`, `lora_alpha` and `lora_target_modules`. By default, the
    operator's setting decides, which is `reference` unless changed."""
    auto_start: Annotated[bool | None, AfterValidator(lambda value: value is not False)] = True
    """False creates the job paused: it is validated now and trains once it is resumed."""
    eval_prompts: EvalPrompts | None = None
    """Prompts that the base model and the tuned one answer once the job has succeeded, to read in
    its report. By default, they are the first ones of those drawn from the validation data. A job
    with neither has no report."""
    eval_prompts_at_checkpoints: bool | None = None
    """Whether both models answer `eval_prompts` at each published checkpoint as well, while the job
    trains. It needs `eval_prompts`."""
    priority: Annotated[
        int | None,
        Field(ge=PRIORITIES.start, le=PRIORITIES.stop - 1),
        AfterValidator(lambda value: value or 0),
    ] = 0
    """Queue priority within the project. Jobs with a higher priority run first; among equals, the
    oldest."""
    allow_inexact_resume: bool | None = None
    """Whether an interrupted job may go on inexactly if no running worker can go on exactly: one
    with the same kind of processor or GPU, enough cores, and the same versions of the libraries. By
    default, it waits for such a worker."""

    @field_validator("integrations")
    @classmethod
    def _must_differ(cls, value: list[Integration] | None) -> list[Integration] | None:
        if len({each.type for each in value or ()}) < len(value or ()):
            raise PydanticCustomError("repeated_type", "Each type can be given once")
        return value

    @field_validator("eval_prompts_at_checkpoints")
    @classmethod
    def _must_have_prompts(cls, value: Any, checked: ValidationInfo) -> Any:
        if value and checked.data.get("eval_prompts", ()) is None:
            raise PydanticCustomError("conflict", "It needs 'eval_prompts'")
        return value

    @property
    def method_type(self) -> Method:
        """Training method. `MethodCreate` has checked its name."""
        return "dpo" if self.method and self.method.type == "dpo" else "supervised"

    def given_hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters that the request sets, by their names on the wire.

        Raises:
            InvalidRequestError: the request sets one of them to two different values.
        """
        older, newer = (
            {name: value for name, value in place.items() if value != AUTO}
            for place in self._hyperparameters()
        )
        for name in older.keys() & newer.keys():
            if older[name] != newer[name]:
                first, second = (
                    json.dumps(value, default=str)[:200] for value in (older[name], newer[name])
                )
                raise InvalidRequestError(
                    f"'{name}' is {first} in 'hyperparameters' and {second} in "
                    f"'method.{self.method_type}.hyperparameters'. Give it in one place, or give "
                    "both the same value.",
                    param=f"hyperparameters.{name}",
                )
        return older | newer

    def auto_hyperparameters(self) -> frozenset[str]:
        """Names on the wire of the hyperparameters that the request leaves to the recipe `auto`."""
        named = (name for place in self._hyperparameters() for name in place if place[name] == AUTO)
        return frozenset(named) - self.given_hyperparameters().keys()

    def _hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the older and the newer place of the hyperparameters have."""
        return _given(self.hyperparameters), _given(self.method and self.method.hyperparameters)

    def content(self) -> dict[str, Any]:
        """What the request asks for, in one form for every way to write it.

        Null fields are left out like absent ones. A later version of the service with more fields
        therefore gets the same content from the same request.
        """
        return self.model_dump(mode="json", exclude_none=True, by_alias=True)


def _given(place: Hyperparameters | None) -> dict[str, Any]:
    return {} if place is None else place.model_dump(exclude_none=True)


class JobRerun(RequestBody):
    """Options of a rerun. The new job has the files, settings and seed of the old one."""

    from_: Literal["saved_state"] | None = Field(default=None, alias="from")
    """Where the new job begins. `saved_state` resumes from the newest saved state of a job that
    failed or was cancelled. Null or absent begins with the first step."""

    def content(self, job_id: str) -> dict[str, Any]:
        """What the request asks for, like `JobCreate.content`."""
        return {"rerun_of": job_id} | ({"from": self.from_} if self.from_ else {})


class JobResume(RequestBody):
    """Options for resuming a job."""

    allow_inexact_resume: Literal[True] | None = None
    """True lets the job go on inexactly if no running worker can go on exactly, now and later. It
    also has an effect on a job that is not paused."""


class JobErrorRead(ResponseBody):
    code: str
    message: str
    param: str | None
    errors: list[dict[str, Any]] = Field(default=[])
    """The first 50 problems of an invalid dataset, each with line, path, code and message."""


def status_shown(status: JobStatus, settings: Settings) -> JobStatus:
    """The status that the API shows: a paused job can be shown as another one, for old clients."""
    return JobStatus(settings.show_paused_as) if status is JobStatus.PAUSED else status


class JobRead(ItemRead):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: UnixTime
    finished_at: UnixTime | None
    estimated_finish: UnixTime | None
    """Unix time at which a running job will end if its speed stays the same."""
    status: JobStatus
    """Status of the job. A new job is `validating_files` until its data is checked. With the
    setting `TUNERY_SHOW_PAUSED_AS=queued`, a paused job is shown as `queued`, with a null
    `queue_position`."""
    model: str
    """Id of the base model in the catalogue."""
    fine_tuned_model: str | None
    """Name of the tuned model. Null unless the job has succeeded."""
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    """Id of the loss log, a CSV file. The list is empty until the job has succeeded."""
    result_checkpoint: str | None
    """Id of the checkpoint that is the job's result. It is the last checkpoint or, with early
    stopping, the one with the best validation loss. Null unless the job has succeeded. The
    checkpoint is deleted together with the tuned model."""
    trained_tokens: int | None
    seed: int
    error: JobErrorRead | None
    hyperparameters: dict[str, Any]
    """All hyperparameters with their resolved values. No value is `auto`."""
    method: dict[str, Any]
    """Training method, with the same hyperparameters."""
    integrations: list[dict[str, Any]] = Field(default=[])
    """Trackers that get the metrics of the job, as the request has named them."""
    metadata: dict[str, str] | None
    user_provided_suffix: str | None

    # From here on, ours.
    started_at: UnixTime | None
    cancel_requested_at: UnixTime | None
    """Unix time at which a running job was asked to stop. Its status changes within seconds."""
    pause_requested_at: UnixTime | None
    """Unix time at which a job was asked to pause while it ran or its data was checked. Null again
    once the job is paused or resumed."""
    priority: int
    """Queue priority within the project. Jobs with a higher priority run first; among equals, the
    oldest."""
    allow_inexact_resume: bool
    """Whether the job may go on inexactly if no running worker can go on exactly."""
    recipe: Recipe
    """Source of the hyperparameters that the request left out: `reference` or `auto`."""
    eval_prompts: list[str] | None
    """Prompts that both models answer in the report of the job. Null if the request gave none."""
    eval_prompts_at_checkpoints: bool
    """Whether both models answer them at each checkpoint as well."""
    parent: ParentAdapter | None
    """Adapter that the job continues. Null for a job that tunes a base model."""
    imported: ImportedArchive | None
    """Archive of an adapter that was made elsewhere. Null for a job that trains."""
    sweep_id: str | None
    """Id of the sweep that made the job. Null for a job that was made alone."""
    rerun_of: str | None
    """Id of the job that this job repeats. That job may have been deleted."""
    resumed_from_step: int | None
    """Step of the saved state that this job resumed from. The job named by `rerun_of` had saved
    it. Null for a job that begins with its first step."""
    attempt: int
    """Number of times that a worker has started or resumed the job."""
    queue_position: int | None
    """Position in the queue of the project, where 1 runs at its next turn. Null if not queued."""
    waiting_reason: str | None
    """Sentence about why the job waits: in the queue, for the check of its data, or because it is
    paused. Null for a job that a worker is busy with, and for one that has ended."""
    trained_steps: int
    """Number of optimizer steps done so far."""
    total_steps: int | None
    """Total number of optimizer steps. Null until the dataset is tokenized."""
    progress: float
    """Fraction of the optimizer steps done, from 0 to 1."""
    epoch: float | None
    """Passes over the training file done so far, with a fraction."""
    train_loss: float | None
    """Training loss of the last step, in nats per learned token."""
    valid_loss: float | None
    """Validation loss at the most recent evaluation, in nats per learned token."""
    tokens_per_second: float | None
    """Mean training speed so far, in tokens per second, not counting padding."""

    @classmethod
    def of(
        cls, job: Job, settings: Settings, *, queue_position: int | None, waiting_reason: str | None
    ) -> "JobRead":
        config = TrainingConfig.model_validate(job.config)
        shown = as_hyperparameters(config, job.learning_rate_multiplier)
        has_succeeded = job.status is JobStatus.SUCCEEDED
        same_names = cls.model_fields.keys() & Job.__table__.columns.keys()
        return cls.model_validate(
            {name: getattr(job, name) for name in same_names}
            | {
                "status": status_shown(job.status, settings),
                "estimated_finish": job.estimated_finish_at,
                "model": job.base_model,
                "fine_tuned_model": job.fine_tuned_model if has_succeeded else None,
                "organization_id": f"org-{settings.organization}",
                "training_file": job.training_file_id,
                "validation_file": job.validation_file_id,
                "result_files": [job.result_file_id] if job.result_file_id else [],
                "result_checkpoint": job.result_checkpoint_id,
                "seed": config.seed,
                "recipe": config.recipe,
                "hyperparameters": shown,
                "method": {"type": config.method, config.method: {"hyperparameters": shown}},
                "metadata": {item.key: item.value for item in job.metadata_items} or None,
                "integrations": job.integrations or [],
                "user_provided_suffix": job.suffix,
                "queue_position": queue_position,
                "waiting_reason": waiting_reason,
                "progress": 1.0 if has_succeeded else job.trained_steps / (job.total_steps or 1),
            }
        )


class JobDeleted(ResponseBody):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True
