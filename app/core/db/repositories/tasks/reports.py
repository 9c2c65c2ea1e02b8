"""Begins reports on tuned models, for workers and for requests."""

from collections.abc import Sequence
from datetime import datetime

from app.core.dataset.formats import DatasetFormat
from app.core.db.check_tables import Task
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.session import Session
from app.core.db.tables import File, Job
from app.core.errors import NotFoundError
from app.core.ids import IdPrefix, new_id
from app.core.job.scores.report import REPORT, VARIANT, ReportRequest

MAX_WAITING = 3
"""Most reports on checkpoints of one job that wait for a worker. A new one takes the place of the
oldest, because they may be made more slowly than checkpoints are published."""

_CONTINUED = (DatasetFormat.TEXT, DatasetFormat.PROMPT_COMPLETION)
"""Formats whose prompts a model continues. Those of all others are messages."""


def find_validation_data(session: Session, job: Job) -> File | None:
    """The file with the validation data of a job, if it has answers to compare with.

    That is the validation file, or the training file if a part of it is held out. None for a file
    of plain texts, and for one that was deleted.
    """
    file_id = job.validation_file_id
    if file_id is None and job.config.get("validation_split") is not None:
        file_id = job.training_file_id
    file = None if file_id is None else _find(session, job.project_id, file_id)
    return None if file is None or file.format == DatasetFormat.TEXT else file


def begin_report(
    session: Session, job: Job, checkpoint_id: str, prompts: Sequence[str], *, now: datetime
) -> Task:
    """Let a worker make the report on a job's adapter. It takes the place of an earlier one.

    Args:
        session: the transaction.
        job: the job.
        checkpoint_id: its result, or another checkpoint.
        prompts: prompts to answer besides the validation data.
        now: the time.
    """
    file = _find(session, job.project_id, job.training_file_id)
    request = ReportRequest(
        prompts=tuple(prompts), are_chats=file is None or file.format not in _CONTINUED
    )
    task = Task(
        id=new_id(IdPrefix.TASK),
        job_id=job.id,
        checkpoint_id=checkpoint_id,
        kind=REPORT,
        variant=VARIANT,
        request=request.model_dump(mode="json"),
        created_at=now,
        bytes=0,
    )
    tasks = TaskRepository(session, job.project_id)
    if (former := tasks.find_to_add(checkpoint_id, REPORT, VARIANT)) is not None:
        tasks.delete(former.id)
    tasks.add(task)
    return task


def begin_checkpoint_report(
    session: Session, job: Job, checkpoint_id: str, *, now: datetime
) -> None:
    """Let a worker answer the prompts of a job with one of its checkpoints, if the job asks for it.

    It scores nothing: the validation loss of the checkpoint is known.
    """
    if not job.eval_prompts_at_checkpoints:
        return
    tasks = TaskRepository(session, job.project_id)
    tasks.delete_waiting(job.id, REPORT, keep=MAX_WAITING - 1)
    begin_report(session, job, checkpoint_id, job.eval_prompts or (), now=now)


def _find(session: Session, project_id: str, file_id: str) -> File | None:
    try:
        return FileRepository(session, project_id).get_for_job(file_id)
    except NotFoundError:
        return None
