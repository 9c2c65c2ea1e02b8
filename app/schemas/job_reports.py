"""Wire format of reports: how a tuned model and its base model answer."""

from typing import Annotated, Literal

from pydantic import Field

from app.core.db.check_tables import Task, TaskStatus
from app.core.db.tables import Checkpoint, Job
from app.core.job.scores.report import MAX_PROMPT_CHARACTERS, MAX_PROMPTS, AnswerReport
from app.schemas.bodies import ItemRead, RequestBody, UnixTime
from app.schemas.exports import RETRY_AFTER_S, TaskErrorRead
from app.schemas.job_results import name_model_of

_Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
EvalPrompts = Annotated[list[_Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]


class ReportCreate(RequestBody):
    eval_prompts: EvalPrompts | None = None
    """Prompts that both models answer, to read. By default, they are those of the job, or else the
    first ones of those drawn from the validation data. A job with neither needs them."""


class ReportRead(ItemRead):
    object: Literal["fine_tuning.job.report"] = "fine_tuning.job.report"
    created_at: UnixTime
    finished_at: UnixTime | None
    """Unix time at which the report was made or has failed. Null until then."""
    fine_tuning_job_id: str
    checkpoint_id: str
    base_model: str
    fine_tuned_model: str
    """Model that answers beside the base model: the result of the job, or a checkpoint of it."""
    status: TaskStatus
    progress: float
    """How much is done, from 0 to 1."""
    retry_after: int | None
    """Seconds after which to ask again. Null once the report has ended."""
    report: AnswerReport | None
    """The scores and the answers. Null until they are there."""
    error: TaskErrorRead | None
    """Why it has failed. Null unless it has."""

    @classmethod
    def of(cls, task: Task, checkpoint: Checkpoint, job: Job) -> "ReportRead":
        """Describe a report.

        Args:
            task: what makes it, or has made it.
            checkpoint: the checkpoint that it is about.
            job: the job.
        """
        is_over = task.status in ("succeeded", "failed")
        return cls.model_validate(
            {
                "id": task.id,
                "created_at": task.created_at,
                "finished_at": task.finished_at,
                "fine_tuning_job_id": job.id,
                "checkpoint_id": checkpoint.id,
                "base_model": job.base_model,
                "fine_tuned_model": name_model_of(checkpoint, job),
                "status": task.status,
                "progress": round(task.progress, 3),
                "retry_after": None if is_over else RETRY_AFTER_S,
                "report": task.result,
                "error": task.error,
            }
        )
