"""Reports on tuned models: how they and their base models answer. The caller owns the transaction.

When a job with validation data or prompts succeeds, a worker begins its report by itself.
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
from app.services.adapters.kept import keep_adapter


def get_report(session: Session, caller: Caller, job_id: str) -> ReportRead:
    """The report of a job, made or in the making.

    Raises:
        NotFoundError: no job has this id, or it has no report.
    """
    job = JobRepository(session, caller.project_id).get(job_id)
    tasks = TaskRepository(session, caller.project_id).list_of_job(job_id, REPORT)
    if not tasks:
        raise NotFoundError(
            f"Job {job_id} has no report. A worker makes one when a job with validation data or "
            "eval_prompts succeeds. For any other job, send POST "
            f"/v1/fine_tuning/jobs/{job_id}/report with eval_prompts.",
            code="report_not_found",
        )
    return ReportRead.of(tasks[0], job)


def find_report_card(session: Session, caller: Caller, adapter: Checkpoint) -> str | None:
    """The report on an adapter as Markdown. None if there is none, or not yet."""
    task = TaskRepository(session, caller.project_id).find(adapter.id, REPORT, VARIANT)
    if task is None or task.result is None:
        return None
    job = JobRepository(session, caller.project_id).get(adapter.job_id)
    report = AnswerReport.model_validate(task.result)
    return write_report_card(report, base=job.base_model, model=job.fine_tuned_model)


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
    return ReportRead.of(task, job)
