"""Reports on tuned models: how they and their base models answer. The caller owns the transaction.

When a job with validation data or prompts succeeds, a worker begins its report by itself, and so it
does when it publishes a checkpoint of a job that asks for that.
"""

from collections.abc import Sequence
from datetime import datetime

from app.core.access import Caller
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects import audit
from app.core.db.repositories.projects.audit import Action
from app.core.db.repositories.tasks.reports import begin_report, find_validation_data
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.session import Session
from app.core.db.tables import Checkpoint
from app.core.errors import InvalidRequestError, NotFoundError
from app.core.job.scores.card import write_report_card
from app.core.job.scores.report import REPORT, VARIANT, AnswerReport
from app.schemas.job_reports import ReportRead
from app.schemas.job_results import name_model_of
from app.services import jobs
from app.services.adapters.kept import keep_adapter


def get_report(session: Session, caller: Caller, job_id: str, checkpoint: str | None) -> ReportRead:
    """The report on the result of a job, made or in the making, or on one of its checkpoints.

    Args:
        session: the transaction.
        caller: who asks.
        job_id: the job.
        checkpoint: the id or the step of a checkpoint; None for the result.

    Raises:
        NotFoundError: no job has this id, or it has no such checkpoint or no report on it.
    """
    job = JobRepository(session, caller.project_id).get(job_id)
    if checkpoint is not None or job.result_checkpoint_id is not None:
        adapter = jobs.get_adapter(session, caller, job_id, checkpoint)
        task = TaskRepository(session, caller.project_id).find(adapter.id, REPORT, VARIANT)
        if task is not None:
            return ReportRead.of(task, adapter, job)
    raise NotFoundError(
        f"Job {job_id} has no such report. A worker makes one when a job with validation data or "
        "eval_prompts succeeds, and at each checkpoint of a job with eval_prompts_at_checkpoints, "
        "unless later checkpoints come first. For any other job that has succeeded, send POST "
        f"/v1/fine_tuning/jobs/{job_id}/report with eval_prompts.",
        code="report_not_found",
    )


def list_reported(session: Session, caller: Caller, job_id: str) -> set[str]:
    """The ids of the checkpoints of a job on which there is a report, made or in the making."""
    tasks = TaskRepository(session, caller.project_id).list_of_job(job_id, REPORT)
    return {task.checkpoint_id for task in tasks}


def find_report_card(session: Session, caller: Caller, adapter: Checkpoint) -> str | None:
    """The report on an adapter as Markdown. None if there is none, or not yet."""
    task = TaskRepository(session, caller.project_id).find(adapter.id, REPORT, VARIANT)
    if task is None or task.result is None:
        return None
    job = JobRepository(session, caller.project_id).get(adapter.job_id)
    report = AnswerReport.model_validate(task.result)
    return write_report_card(report, base=job.base_model, model=name_model_of(adapter, job))


def request_report(
    session: Session, caller: Caller, job_id: str, prompts: Sequence[str], *, now: datetime
) -> ReportRead:
    """Let a worker make the report of a job. It takes the place of an earlier one.

    Args:
        session: the transaction.
        caller: who asks.
        job_id: the job.
        prompts: prompts to answer; none for those of the job.
        now: the time.

    Raises:
        NotFoundError: no job has this id, or its adapter was deleted.
        StateConflictError: the job has no result, or does not have it yet.
        InvalidRequestError: the job has no validation data to answer, and there are no prompts.
    """
    adapter = keep_adapter(session, caller, job_id, None)
    job = JobRepository(session, caller.project_id).get(job_id)
    prompts = prompts or job.eval_prompts or ()
    if not prompts and find_validation_data(session, job) is None:
        raise InvalidRequestError(
            f"Job {job_id} has no validation data with answers to compare with: it had none, its "
            "rows are texts, or the file was deleted. Send up to 5 eval_prompts.",
            code="missing_required_parameter",
            param="eval_prompts",
        )
    task = begin_report(session, job, adapter.id, prompts, now=now)
    audit.record(session, caller, Action.REPORT_REQUESTED, job_id, now=now)
    return ReportRead.of(task, adapter, job)
