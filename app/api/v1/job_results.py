"""/v1/fine_tuning/jobs/{id}/...: a job's events, data, checkpoints and loss log."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.access import PolicyRoute, needs
from app.api.deps import LIMIT, CallerDep, Cursor, ResourcesDep, as_json
from app.api.live.answers import MAX_CURSOR, STREAMED, HubDep, follow_job
from app.api.streaming import attachment
from app.core.access import Scope
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.job_views.curves import CurveRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.errors import NotFoundError
from app.core.ids import IdPrefix
from app.core.job import loss_log, tensorboard
from app.core.job.loss_log import MAX_STEP, StepMetrics, in_batches
from app.core.job.status import JobStatus
from app.schemas.attempts import AttemptsRead
from app.schemas.bodies import PageRead
from app.schemas.fine_tuning_jobs import status_shown
from app.schemas.job_results import CheckpointRead, DataRead, EventRead, MetricsRead
from app.services.scoring.reports import list_reported

_TEXTS: Mapping[str, Callable[[Iterable[Iterable[StepMetrics]]], Iterator[str]]] = {
    "text/csv": loss_log.csv_texts,
    "application/x-ndjson": loss_log.json_texts,
}
"""How batches of the loss log are written, by media type."""

_MAX_ATTEMPTS = 1000
_BATCH = 1000
"""Number of steps that are read in one transaction while they are streamed."""

router = APIRouter(
    prefix="/fine_tuning/jobs/{job_id}", tags=["fine-tuning"], route_class=PolicyRoute
)


@router.get(
    "/events",
    response_model=PageRead[EventRead],
    responses=STREAMED,
    dependencies=[needs(Scope.READ)],
)
async def list_events(
    job_id: str,
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    hub: HubDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.EVENT))],
    limit: Annotated[int, Query(ge=1, le=1000, description=LIMIT)] = 20,
    *,
    stream: Annotated[
        bool,
        Query(description="True to receive the events, the steps and the job as they come."),
    ] = False,
    cursor: Annotated[
        str | None,
        Query(
            max_length=MAX_CURSOR,
            description="Where a stream begins: after the message with this `id`, or with what "
            "comes from now on if it is `latest`. The default is the beginning of the job. The "
            "header `Last-Event-ID` has precedence.",
        ),
    ] = None,
) -> Response:
    """List what happened to a job, newest first.

    With `stream=true`, the answer is a stream of server-sent events, oldest first. The `data` of
    each is one line of JSON. `event: job` has the job; it comes first and whenever the job has
    changed. `event: event` has an event, and `event: step` a row of the loss log. A step with the
    number of an earlier one replaces it, and all later steps are void: an attempt resumed there.
    `event: end` has the job, which has ended, or says that it was deleted. No more messages follow.
    """
    if stream:
        return await follow_job(request, resources, hub, job_id, cursor)

    def act(session: Session) -> PageRead[EventRead]:
        JobRepository(session, caller.project_id).require(job_id)
        page = EventRepository(session, caller.project_id).list_page(
            job_id, after=after, limit=limit
        )
        return PageRead[EventRead].of(page, EventRead.model_validate)

    return await to_thread.run_sync(lambda: as_json(resources.read(act)))


@router.get("/data", dependencies=[needs(Scope.READ)])
def get_data(job_id: str, caller: CallerDep, resources: ResourcesDep) -> DataRead:
    """Get what the check of a job's data found: rows, tokens, lengths, warnings and refusals.

    `report` is null while the job is `validating_files`. A job whose data was never checked to the
    end has no report, and the answer is 404.
    """

    def act(session: Session) -> DataRead:
        jobs = JobRepository(session, caller.project_id)
        job = jobs.get(job_id)
        check = jobs.find_check(job_id)
        if check is None or (check.report is None and job.status is not JobStatus.VALIDATING_FILES):
            raise NotFoundError(_why_no_report(job, check), code="data_report_not_found")
        return DataRead.of(check, status_shown(job.status, resources.settings))

    return resources.read(act)


@router.get("/attempts", response_model=AttemptsRead, dependencies=[needs(Scope.READ)])
def list_attempts(job_id: str, caller: CallerDep, resources: ResourcesDep) -> Response:
    """List the attempts at a job, oldest first, each with why it ended and how the job went on.

    Of a job with more than 1,000 attempts, the newest 1,000 are listed.
    """

    def act(session: Session) -> AttemptsRead:
        jobs = JobRepository(session, caller.project_id)
        job = jobs.get(job_id)
        attempts = jobs.list_attempts(job_id, limit=_MAX_ATTEMPTS)
        check = jobs.find_check(job_id)
        reported = list_reported(session, caller, job_id)
        has_report = job.result_checkpoint_id in reported
        return AttemptsRead.of(job, attempts, check, has_report=has_report)

    return as_json(resources.read(act))


@router.get("/checkpoints", dependencies=[needs(Scope.READ)])
def list_checkpoints(
    job_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.CHECKPOINT))],
    limit: Annotated[int, Query(ge=1, le=1000, description=LIMIT)] = 10,
) -> PageRead[CheckpointRead]:
    """List the checkpoints of a job, newest first. The job's result has `is_result` true.

    The result is not always the newest checkpoint: a job that stops early keeps the adapter of its
    best evaluation. `result_files` are the adapter's files.
    """

    def act(session: Session) -> PageRead[CheckpointRead]:
        job = JobRepository(session, caller.project_id).get(job_id)
        page = CheckpointRepository(session, caller.project_id).list_page(
            job_id, after=after, limit=limit
        )
        reported = list_reported(session, caller, job_id)
        return PageRead[CheckpointRead].of(
            page, lambda row: CheckpointRead.of(row, job, has_report=row.id in reported)
        )

    return resources.read(act)


@router.get(
    "/metrics",
    response_model=MetricsRead,
    responses={
        200: {"content": {"text/csv": {}, "application/x-ndjson": {}, tensorboard.MEDIA_TYPE: {}}}
    },
    dependencies=[needs(Scope.READ)],
)
def get_metrics(
    job_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    accept: Annotated[str, Header(description="Media type of the answer.")] = "application/json",
    step_from: Annotated[
        int,
        Query(
            ge=0,
            le=MAX_STEP,
            description="First optimizer step to return. Step 0 is the model before training.",
        ),
    ] = 0,
    step_to: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_STEP,
            description="Last optimizer step to return. The default is the latest step.",
        ),
    ] = None,
    limit: Annotated[
        int,
        Query(ge=1, le=10_000, description="Maximum number of steps in a response of JSON."),
    ] = 1000,
    points: Annotated[
        int | None,
        Query(
            ge=2,
            le=1000,
            description="Maximum number of steps to choose, for a chart: the first and the last, "
            "those with a validation loss, and in each of many equal ranges those with the lowest "
            "and the highest training loss. Absent for every step.",
        ),
    ] = None,
) -> Response:
    """Get the loss log, one row per optimizer step, also while the job runs.

    With validation data, the first row is that of step 0: the evaluation before training, whose
    training loss, accuracy, learning rate and gradient are null.

    The header `Accept` chooses between JSON, `text/csv`, `application/x-ndjson` and
    `application/x-tensorboard`, an events file of TensorBoard. JSON comes in pages: while
    `has_more` is true, the next page begins with the step after the last one. The others have every
    step of the range.
    """

    def read(first: int, at_most: int = _BATCH) -> list[StepMetrics]:
        def act(session: Session) -> list[StepMetrics]:
            jobs = JobRepository(session, caller.project_id)
            jobs.require(job_id)  # also in the middle of a download, which would not be whole
            if points is not None:
                curves = CurveRepository(session, caller.project_id)
                return curves.list_points(job_id, first=first, last=step_to, points=points)
            return jobs.list_steps(job_id, first=first, last=step_to, limit=at_most)

        return resources.read(act)

    if tensorboard.MEDIA_TYPE in accept:
        job = resources.read(lambda session: JobRepository(session, caller.project_id).get(job_id))
        rows = read(step_from)
        return _send_events_file(job, [rows] if points else in_batches(rows, read))
    media_type = next((one for one in _TEXTS if one in accept), None)
    if media_type is not None:
        rows = read(step_from)
        batches = [rows] if points else in_batches(rows, read)
        ending = "csv" if media_type == "text/csv" else "jsonl"
        named = {"content-disposition": attachment(f"{job_id}-metrics.{ending}")}
        lines = _TEXTS[media_type](batches)
        return StreamingResponse(lines, media_type=media_type, headers=named)
    rows = read(step_from, limit + 1)
    shown = rows if points else rows[:limit]
    data = [row.as_row() for row in shown]
    return as_json(MetricsRead(data=data, has_more=len(rows) > len(shown)))


def _send_events_file(job: Job, batches: Iterable[Iterable[StepMetrics]]) -> Response:
    """Send the loss log under a name by which TensorBoard knows its files."""
    began_s = (job.started_at or job.created_at).timestamp()
    name = f"events.out.tfevents.{began_s:.0f}.{job.id}"
    return StreamingResponse(
        tensorboard.event_records(batches, began_s=began_s),
        media_type=tensorboard.MEDIA_TYPE,
        headers={"content-disposition": attachment(name)},
    )


def _why_no_report(job: Job, check: DataCheck | None) -> str:
    if check is None:
        return (
            f"Job {job.id} was created by a release of Tunery that did not check data before "
            "training, so there is no report. POST .../rerun creates a job that has one."
        )
    ending = "failed" if job.status is JobStatus.FAILED else f"was {job.status}"
    return f"Job {job.id} {ending} before its data was checked to the end, so there is no report."
