"""Wire format of what a job makes: events, the report on its data, checkpoints, the loss log."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.core.db.check_tables import DataCheck
from app.core.db.tables import Checkpoint, Job
from app.core.job.data_report import DataReport
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.schemas.bodies import ItemRead, ResponseBody, UnixTime


class EventRead(ItemRead):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: UnixTime
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class DataRead(ResponseBody):
    object: Literal["fine_tuning.job.data"] = "fine_tuning.job.data"
    fine_tuning_job_id: str
    status: JobStatus
    """Status of the job, as `GET /v1/fine_tuning/jobs/{id}` shows it."""
    checked_at: UnixTime | None
    """Unix time at which the check ended. Null while the job is `validating_files`."""
    report: DataReport | None
    """What the check found. Null while the job is `validating_files`."""

    @classmethod
    def of(cls, check: DataCheck, status: JobStatus) -> "DataRead":
        return cls.model_validate(
            {
                "fine_tuning_job_id": check.job_id,
                "status": status,
                "checked_at": check.finished_at,
                "report": check.report,
            }
        )


_Reward = Annotated[float | None, Field(exclude_if=lambda value: value is None)]
"""Left out of the metrics of other methods, which have none."""


class CheckpointMetricsRead(ResponseBody):
    step: int
    train_loss: float | None = None
    """Training loss of the step, in nats per learned token, or per pair with the method `dpo`. Null
    for an imported adapter."""
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_perplexity: float | None = None
    """Exponential of `valid_loss`, at most a thousand million. Null with the method `dpo`."""
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_chosen_reward: _Reward = None
    """Mean reward of the preferred answers of the step. Absent unless the method is `dpo`."""
    train_rejected_reward: _Reward = None
    """Mean reward of the other answers of the step. Absent unless the method is `dpo`."""
    train_reward_margin: _Reward = None
    """Difference of the two rewards. Absent unless the method is `dpo`."""
    train_reward_accuracy: _Reward = None
    """Fraction of the step's pairs whose preferred answer has the larger reward. Absent unless the
    method is `dpo`."""
    valid_chosen_reward: _Reward = None
    valid_rejected_reward: _Reward = None
    valid_reward_margin: _Reward = None
    valid_reward_accuracy: _Reward = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "CheckpointMetricsRead":
        if not checkpoint.metrics:
            return cls(step=checkpoint.step)
        return cls.model_validate(StepMetrics.model_validate(checkpoint.metrics).as_row())


def name_model_of(checkpoint: Checkpoint, job: Job) -> str:
    """The name by which a checkpoint of a job is asked."""
    is_result = checkpoint.id == job.result_checkpoint_id
    return job.fine_tuned_model + ("" if is_result else f":ckpt-step-{checkpoint.step}")


class CheckpointRead(ItemRead):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: UnixTime
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    """Model name of the checkpoint. For the job's result it is the name of the tuned model; for any
    other checkpoint, that name followed by `:ckpt-step-N`."""
    is_result: bool
    """True if this checkpoint is the job's result. False for every checkpoint while the job
    runs."""
    step_number: int
    metrics: CheckpointMetricsRead
    result_files: list[str]
    """Ids of the adapter's files. `GET /v1/files/{id}` gives a file's name."""
    has_report: bool
    """Whether there is a report on its answers, made or in the making: `GET .../report`."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, job: Job, *, has_report: bool) -> "CheckpointRead":
        return cls(
            id=checkpoint.id,
            created_at=int(checkpoint.created_at.timestamp()),
            fine_tuning_job_id=checkpoint.job_id,
            fine_tuned_model_checkpoint=name_model_of(checkpoint, job),
            is_result=checkpoint.id == job.result_checkpoint_id,
            step_number=checkpoint.step,
            metrics=CheckpointMetricsRead.of(checkpoint),
            result_files=[file.id for file in checkpoint.files],
            has_report=has_report,
        )


class MetricsRead(ResponseBody):
    object: Literal["list"] = "list"
    data: list[dict[str, float | int | None]]
    """The loss log, one row per optimizer step. With validation data, it begins with step 0, the
    evaluation before training."""
    has_more: bool
    """True if the log continues after the last row, within the range that was asked for."""
