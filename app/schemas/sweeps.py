"""Wire format of sweeps: jobs that one request makes, with different hyperparameters."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from app.core.job.child.job_spec import MAX_SWEEP_JOBS
from app.core.job.status import JobStatus
from app.schemas.bodies import ItemRead, RequestBody, ResponseBody, UnixTime
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import DPO_NAMES

INCOMPARABLE = {
    "validation_split": "each job would be measured on other rows",
    "train_on": "the loss would be the mean over other tokens",
    "train_on_inputs": "the loss would be the mean over other tokens",
    **dict.fromkeys(DPO_NAMES, "it is a part of the loss"),
}
"""Hyperparameters that cannot vary, and why the validation losses could then not be compared."""

_Values = Annotated[list[Any], Field(min_length=1, max_length=MAX_SWEEP_JOBS)]
_Point = Annotated[dict[str, Any], Field(min_length=1)]


class SweepPoints(RequestBody):
    """The hyperparameters that vary, by their names in the hyperparameters of a job."""

    grid: dict[str, _Values] | None = Field(default=None, min_length=1)
    """Values of each hyperparameter. There is a job for each combination of them."""
    list_: list[_Point] | None = Field(
        default=None, alias="list", min_length=1, max_length=MAX_SWEEP_JOBS
    )
    """Hyperparameters of each job."""

    @model_validator(mode="after")
    def _must_be_one(self) -> "SweepPoints":
        if (self.grid is None) is (self.list_ is None):
            raise PydanticCustomError("conflict", "Give either 'grid' or 'list'")
        return self


class SweepCreate(JobCreate):
    """A job, and what varies. All else is the same in every job, including the seed."""

    sweep: SweepPoints
    """Hyperparameters that vary: `grid` for every combination of some values, or `list` for the
    hyperparameters of each job. A sweep has at most 64 jobs."""


class SweepPoint(ResponseBody):
    """One job of a sweep."""

    job_id: str
    hyperparameters: dict[str, Any]
    """The hyperparameters that vary, with their resolved values."""
    status: JobStatus
    fine_tuned_model: str | None
    """Name of the tuned model. Null unless the job has succeeded."""
    trained_steps: int
    total_steps: int | None
    """Total number of optimizer steps. Null until the dataset is tokenized."""
    valid_loss: float | None
    """Validation loss at the most recent evaluation, in nats per learned token."""
    result_valid_loss: float | None
    """Validation loss of the adapter that is the job's result. Null unless the job has succeeded
    and its tuned model still exists."""


class SweepRead(ItemRead):
    object: Literal["fine_tuning.sweep"] = "fine_tuning.sweep"
    created_at: UnixTime
    finished_at: UnixTime | None
    """Unix time at which the last job ended. Null while one has not."""
    status: JobStatus
    """Status of the sweep. While jobs have not ended, it is that of the job that is furthest:
    `running`, `queued`, `validating_files` or `paused`. Then it is `succeeded` if a job has
    succeeded, and otherwise `failed` or `cancelled`."""
    model: str
    """Id of the base model in the catalogue."""
    training_file: str
    validation_file: str | None
    points: list[SweepPoint]
    """The jobs that were not deleted. Those with a `result_valid_loss` are first, the lowest
    first; the others are in the order of their creation."""
    best: SweepPoint | None
    """The job with the lowest `result_valid_loss`. Null before one has succeeded."""
