"""Exports of adapters: which can be made, and the tasks that make them.

The caller owns the transaction.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from app.core.access import Caller
from app.core.base_models import Catalogue
from app.core.db.check_tables import Task
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint, Job
from app.core.errors import InvalidRequestError, StateConflictError
from app.core.hand_off.formats import EXPORT, ExportFormat, why_not_gguf
from app.core.ids import IdPrefix, new_id
from app.core.job.artifacts import ADAPTER_WEIGHTS_NAME
from app.core.job.training_config import TrainingConfig
from app.core.stored_models.lookup import ModelFacts, read_facts
from app.schemas.exports import ExportList, ExportRead
from app.services import jobs, quotas
from app.services.adapters.kept import keep_adapter
from app.services.job_inputs import find_base_of

_MIB = 1024 * 1024
_ROOM_BYTES = 64 * _MIB
"""Room for everything that is no weight: tokenizer, cards, configuration."""


class Export(NamedTuple):
    checkpoint: Checkpoint
    task: Task
    model: str
    """Name of the tuned model."""


def find_export(
    session: Session, caller: Caller, job_id: str, checkpoint: str | None, variant: ExportFormat
) -> Export | None:
    """The export of a job's result, or of another of its checkpoints. None if nobody asked for it.

    Raises:
        NotFoundError: the job or the checkpoint does not exist, or the adapter was deleted.
        StateConflictError: the job has no result yet, or the export has failed.
    """
    adapter = jobs.get_adapter(session, caller, job_id, checkpoint)
    task = TaskRepository(session, caller.project_id).find(adapter.id, EXPORT, variant)
    if task is None:
        return None
    job = JobRepository(session, caller.project_id).get(job_id)
    return _unless_failed(Export(adapter, task, job.fine_tuned_model))


def request_export(
    session: Session,
    caller: Caller,
    job_id: str,
    checkpoint: str | None,
    variant: ExportFormat,
    *,
    catalogue: Catalogue,
    require_room: Callable[[int], None],
    now: datetime,
) -> Export:
    """Let a worker make an export, unless one is there already. Two requests make one task.

    Args:
        require_room: raises StorageFullError if the disk has no room for so many bytes.

    Raises:
        NotFoundError: the job or the checkpoint does not exist, or the adapter was deleted.
        StateConflictError: the job has no result yet, or the export has failed.
        InvalidRequestError: the adapter cannot be written in this format, or its base model is not
            installed any more.
        QuotaExceededError: the project may not store so much.
        StorageFullError: there is no room.
    """
    adapter = keep_adapter(session, caller, job_id, checkpoint)
    job = JobRepository(session, caller.project_id).get(job_id)
    tasks = TaskRepository(session, caller.project_id)
    task = tasks.find_to_add(adapter.id, EXPORT, variant)
    if task is not None:
        return _unless_failed(Export(adapter, task, job.fine_tuned_model))
    consequence = "its adapter can be downloaded only with format=peft"
    _, base_model = find_base_of(session, catalogue, job, consequence)
    facts = read_facts(session, catalogue, base_model)
    _require_possible(job, facts, variant)
    size = _estimate_bytes(adapter, facts, variant)
    quotas.require_bytes(session, caller, size)
    require_room(2 * size)  # it is made in one place, and then copied to the store
    task = Task(
        id=new_id(IdPrefix.TASK),
        job_id=job_id,
        checkpoint_id=adapter.id,
        kind=EXPORT,
        variant=variant,
        created_at=now,
        bytes=size,
    )
    tasks.add(task)
    return Export(adapter, task, job.fine_tuned_model)


def list_exports(session: Session, caller: Caller, job_id: str) -> ExportList:
    """The exports of a job's checkpoints that are there or are being made, newest first.

    Raises:
        NotFoundError: no job has this id.
    """
    job = JobRepository(session, caller.project_id).get(job_id)
    checkpoints = CheckpointRepository(session, caller.project_id)
    tasks = TaskRepository(session, caller.project_id).list_of_job(job_id, EXPORT)
    found = ((checkpoints.find(job_id, task.checkpoint_id), task) for task in tasks)
    data = [ExportRead.of(task, one, job.fine_tuned_model) for one, task in found if one]
    return ExportList(data=data)


def _unless_failed(export: Export) -> Export:
    error = export.task.error
    if error is None:
        return export
    raise StateConflictError(
        f"The export of step {export.checkpoint.step} as {export.task.variant} has failed "
        f"({error['code']}): {error['message']} A request ten minutes after the failure begins it "
        "again.",
        code="export_failed",
        param="format",
    )


def _require_possible(job: Job, facts: ModelFacts, variant: ExportFormat) -> None:
    if variant != "gguf":
        return
    shape = TrainingConfig.model_validate(job.config).lora
    why_not = why_not_gguf(shape, facts.architecture)
    if why_not is not None:
        raise InvalidRequestError(
            f"The adapter of job {job.id} cannot be written as GGUF: {why_not}. Take "
            "format=merged, which has the adapter in the weights of the base model.",
            code="format_not_possible",
            param="format",
        )


def _estimate_bytes(adapter: Checkpoint, facts: ModelFacts, variant: ExportFormat) -> int:
    """Most bytes that the export takes."""
    if variant == "merged":
        return facts.weight_bytes + _ROOM_BYTES
    sizes = (file.bytes for file in adapter.files if file.filename == ADAPTER_WEIGHTS_NAME)
    return 2 * sum(sizes) + _MIB  # the adapter may be stored in half the precision
