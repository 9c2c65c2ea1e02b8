"""Wire format of exports: adapters in the formats of other programs, and merged models."""

from typing import Literal

from app.core.db.check_tables import Task, TaskStatus
from app.core.db.tables import Checkpoint
from app.core.hand_off.commands import llama_server, vllm_with_merged_model
from app.core.hand_off.formats import ExportFormat
from app.core.job.child.training_events import Verification
from app.schemas.bodies import ItemRead, ResponseBody, UnixTime

RETRY_AFTER_S = 2
"""Seconds after which to ask again whether an export or a report is ready."""


class TaskErrorRead(ResponseBody):
    code: str
    message: str


class ExportRead(ItemRead):
    object: Literal["fine_tuning.job.export"] = "fine_tuning.job.export"
    created_at: UnixTime
    fine_tuning_job_id: str
    checkpoint_id: str
    step_number: int
    format: ExportFormat
    status: TaskStatus
    progress: float
    """How much is done, from 0 to 1."""
    retry_after: int | None
    """Seconds after which to ask again. Null once the export has ended."""
    bytes: int | None
    """Size of its files. Null until they are made."""
    expires_at: UnixTime | None
    """Unix time at which it is deleted, or after which a failed export can be asked for again. Each
    download puts it off. Null until the export has ended."""
    verification: Verification | None
    """How the export was compared with the base model and its adapter. Null until it is ready."""
    error: TaskErrorRead | None
    """Why it has failed. Null unless it has."""
    command: str
    """Command that serves it. The model card says what its capitals stand for."""

    @classmethod
    def of(cls, task: Task, checkpoint: Checkpoint, model: str) -> "ExportRead":
        """Describe an export.

        Args:
            task: what makes it, or has made it.
            checkpoint: the checkpoint.
            model: name of the tuned model.
        """
        is_over = task.status in ("succeeded", "failed")
        is_gguf = task.variant == "gguf"
        return cls.model_validate(
            {
                "id": task.id,
                "created_at": task.created_at,
                "fine_tuning_job_id": task.job_id,
                "checkpoint_id": task.checkpoint_id,
                "step_number": checkpoint.step,
                "format": task.variant,
                "status": task.status,
                "progress": round(task.progress, 3),
                "retry_after": None if is_over else RETRY_AFTER_S,
                "bytes": task.bytes if task.status == "succeeded" else None,
                "expires_at": task.expires_at,
                "verification": task.result,
                "error": task.error,
                "command": llama_server() if is_gguf else vllm_with_merged_model(model),
            }
        )

    def verification_line(self) -> str:
        """The verification as one line of JSON."""
        return self.verification.model_dump_json() if self.verification else ""


class ExportList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[ExportRead]
