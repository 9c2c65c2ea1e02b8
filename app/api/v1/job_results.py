"""/v1/fine_tuning/jobs/{id}/...: what a job has made: checkpoints, loss log, adapter."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.archive import zip_segments
from app.api.deps import Cursor, ReadDep, ServicesDep
from app.api.pagination import as_page
from app.api.streaming import send_segments
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.tables import Checkpoint, Job
from app.core.ids import IdPrefix
from app.core.job import loss_log
from app.core.job.loss_log import StepMetrics
from app.schemas.fine_tuning_jobs import CheckpointMetricsRead, CheckpointRead, MetricsRead
from app.schemas.pages import PageRead
from app.services import results as result_service

_MAX_STEP = 10**9
"""More steps than any job takes, and fewer than a database's integers hold."""

router = APIRouter(prefix="/fine_tuning/jobs/{job_id}", tags=["fine-tuning"])


@router.get("/checkpoints")
def list_checkpoints(
    job_id: str,
    session: ReadDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.CHECKPOINT))],
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> PageRead[CheckpointRead]:
    """The checkpoints of a job, newest first. The job's result has `is_result` true.

    It need not be the newest: a job that stops early keeps the adapter of its best evaluation.
    `result_files` are the adapter's files.
    """
    job = JobRepository(session).get(job_id)
    page = CheckpointRepository(session).list_page(job_id, after=after, limit=limit)
    return as_page(page, lambda checkpoint: _read(checkpoint, job))


@router.get(
    "/metrics",
    response_model=MetricsRead,
    responses={200: {"content": {"text/csv": {}, "application/x-ndjson": {}}}},
)
def get_metrics(
    job_id: str,
    session: ReadDep,
    accept: Annotated[str, Header()] = "application/json",
    step_from: Annotated[int, Query(ge=1, le=_MAX_STEP)] = 1,
    step_to: Annotated[int | None, Query(ge=1, le=_MAX_STEP)] = None,
) -> MetricsRead | Response:
    """The loss log, one row per optimizer step, also while the job runs.

    As JSON, or, by the header `Accept`, as `text/csv` or `application/x-ndjson`.
    """
    jobs = JobRepository(session)
    jobs.get(job_id)
    rows = jobs.list_steps(job_id, first=step_from, last=step_to)
    if "text/csv" in accept:
        return StreamingResponse(loss_log.csv_lines(rows), media_type="text/csv")
    if "application/x-ndjson" in accept:
        return StreamingResponse(loss_log.json_lines(rows), media_type="application/x-ndjson")
    return MetricsRead(data=[row.as_row() for row in rows])


@router.get(
    "/adapter", response_class=Response, responses={200: {"content": {"application/zip": {}}}}
)
def get_adapter(
    job_id: str,
    request: Request,
    services: ServicesDep,
    checkpoint: Annotated[
        str | None,
        Query(
            description="Id or step of a checkpoint. Without it, the adapter is the job's result."
        ),
    ] = None,
) -> Response:
    """The adapter as a zip archive. Ranges are served, so a broken download can be resumed."""
    with services.database.reading() as session:
        found = result_service.get_adapter(session, job_id, checkpoint)
    return send_segments(
        request,
        services.store,
        zip_segments(found.files),
        etag=found.manifest_sha256,
        media_type="application/zip",
        filename=f"{job_id}-step-{found.step}.zip",
    )


def _read(checkpoint: Checkpoint, job: Job) -> CheckpointRead:
    is_result = checkpoint.id == job.result_checkpoint_id
    step_name = "" if is_result else f":ckpt-step-{checkpoint.step}"
    metrics = StepMetrics.model_validate(checkpoint.metrics).as_row()
    return CheckpointRead(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at.timestamp()),
        fine_tuning_job_id=checkpoint.job_id,
        fine_tuned_model_checkpoint=f"{job.fine_tuned_model}{step_name}",
        is_result=is_result,
        step_number=checkpoint.step,
        metrics=CheckpointMetricsRead.model_validate(metrics, extra="ignore"),
        result_files=[file.id for file in checkpoint.files],
    )
