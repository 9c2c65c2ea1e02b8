"""/v1/fine_tuning/jobs: create, list, read, cancel, pause, resume, rerun and delete jobs."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.access import needs
from app.api.deps import (
    JOB_ID,
    LIMIT,
    ORDER,
    REPLAYED,
    REPLAYED_HEADER,
    CallerDep,
    Cursor,
    Now,
    OriginDep,
    Resources,
    ResourcesDep,
    as_json,
)
from app.api.live.answers import MAX_WAIT_S, STREAMED, HubDep, follow_project, wait_for_job
from app.api.requests import StrictJsonRoute
from app.api.v1.job_filters import read_filter
from app.core.access import Scope
from app.core.db.base import Order
from app.core.db.repositories.jobs import JobFilter
from app.core.db.session import Session
from app.core.db.tables import Job
from app.core.ids import IdPrefix
from app.schemas.bodies import PageRead
from app.schemas.fine_tuning_jobs import JobCreate, JobDeleted, JobRead, JobRerun, JobResume
from app.services import jobs as job_service
from app.services import new_jobs
from app.services.new_jobs import NewJob
from app.services.resuming.reruns import rerun_job_once

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictJsonRoute)


@router.post("", responses=REPLAYED_HEADER, dependencies=[needs(Scope.WRITE)])
def create_job(
    body: JobCreate,
    request: Request,
    response: Response,
    origin: OriginDep,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> JobRead:
    """Create a fine-tuning job. The answer shows every hyperparameter with its resolved value.

    The job is `validating_files` until a worker has checked its data. Then it is `queued`, or
    `failed` if it cannot be trained.

    The request is safe to repeat with the header `Idempotency-Key`: the same key and body make one
    job.
    """
    create = partial(new_jobs.create_job_once, caller=caller, request=body, origin=origin, now=now)
    return _make(create, request, response, resources)


@router.get(
    "",
    response_model=PageRead[JobRead],
    responses=STREAMED,
    dependencies=[needs(Scope.READ)],
)
async def list_jobs(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    hub: HubDep,
    which: Annotated[JobFilter, Depends(read_filter)],
    after: Annotated[str | None, Depends(Cursor(IdPrefix.JOB))],
    limit: Annotated[int, Query(ge=1, le=1000, description=LIMIT)] = 20,
    order: Annotated[Order, Query(description=ORDER)] = "desc",
    *,
    stream: Annotated[
        bool,
        Query(description="True to receive each job that is created or changed from now on."),
    ] = False,
) -> Response:
    """List jobs, newest first unless `order` is `asc`. A job must match every filter.

    `metadata[KEY]=VALUE` selects the jobs with this label, and `metadata=null` the jobs without
    labels.

    With `stream=true`, the answer is a stream of server-sent events. `event: job` has a job that
    was created or has changed. The other parameters have no effect on it. The stream does not say
    that a job was deleted, or that only its `queue_position` has changed.
    """
    if stream:
        return await follow_project(request, resources, hub)
    search = partial(
        job_service.list_jobs,
        caller=caller,
        settings=resources.settings,
        after=after,
        limit=limit,
        which=which,
        order=order,
    )
    return await to_thread.run_sync(lambda: as_json(resources.read(search)))


@router.get("/{job_id}", response_model=JobRead, dependencies=[needs(Scope.READ)])
async def get_job(
    job_id: str,
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    hub: HubDep,
    wait: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_WAIT_S,
            description="Number of seconds to wait for a change. The answer comes as soon as the "
            "job differs from the header `If-None-Match`, or without that header, from what it was "
            "when the request arrived. After this time it comes in any case.",
        ),
    ] = None,
) -> Response:
    """Get a job: its status, its progress and its results."""
    if wait is not None:
        return await wait_for_job(request, resources, hub, job_id, seconds=wait)
    read = partial(job_service.get_job, caller=caller, job_id=job_id, settings=resources.settings)
    return await to_thread.run_sync(lambda: as_json(resources.read(read)))


@router.post("/{job_id}/cancel", dependencies=[needs(Scope.WRITE)])
def cancel_job(job_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> JobRead:
    """Stop a job as soon as possible. Cancelling it again has no further effect.

    A running job is still `running` in the answer, with `cancel_requested_at` set. It is
    `cancelled` within seconds and keeps its log and the checkpoints made so far.
    """
    cancel = partial(job_service.cancel_job, caller=caller, job_id=job_id, now=now)
    return _change(cancel, resources, frees_space=True)


@router.post("/{job_id}/pause", dependencies=[needs(Scope.WRITE)])
def pause_job(job_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> JobRead:
    """Take a job out of the queue until it is resumed. Pausing it again has no further effect.

    A running job is still `running` in the answer, with `pause_requested_at` set. It is `paused` as
    soon as its state is saved, and resumes from there. A job that is `validating_files` is `paused`
    once its data is checked.
    """
    pause = partial(job_service.pause_job, caller=caller, job_id=job_id, now=now)
    return _change(pause, resources)


@router.post("/{job_id}/resume", dependencies=[needs(Scope.WRITE)])
def resume_job(
    job_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    body: JobResume | None = None,
) -> JobRead:
    """Put a paused job back into the queue. This has no effect on a job that is not paused.

    A job that was asked to pause and has not paused yet continues. A job that waits because no
    running worker can go on with it exactly may go on inexactly after `allow_inexact_resume`.
    """
    resume = partial(
        job_service.resume_job,
        caller=caller,
        job_id=job_id,
        may_be_inexact=body is not None and body.allow_inexact_resume is True,
        now=now,
    )
    return _change(resume, resources)


@router.post("/{job_id}/rerun", responses=REPLAYED_HEADER, dependencies=[needs(Scope.WRITE)])
def rerun_job(
    job_id: str,
    request: Request,
    response: Response,
    origin: OriginDep,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    body: JobRerun | None = None,
) -> JobRead:
    """Create a job that repeats another job.

    The new job has the same files, base model, hyperparameters, seed and labels. The other job can
    have any status. If it failed or was cancelled, `from` set to `saved_state` resumes from its
    newest saved state. The request is safe to repeat with the header `Idempotency-Key`.
    """
    rerun = partial(
        rerun_job_once,
        caller=caller,
        job_id=job_id,
        request=body or JobRerun(),
        origin=origin,
        now=now,
    )
    return _make(rerun, request, response, resources)


@router.delete("/{job_id}", dependencies=[needs(Scope.WRITE)])
def delete_job(job_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> JobDeleted:
    """Delete a job that has ended, and all it made: adapter, model, checkpoints, log and events.

    The uploaded files stay.
    """
    resources.delete(lambda session: job_service.delete_job(session, caller, job_id, now=now))
    return JobDeleted(id=job_id)


def _make(
    make: Callable[..., NewJob], request: Request, response: Response, resources: Resources
) -> JobRead:
    def act(session: Session) -> JobRead:
        new_job = make(session, catalogue=resources.catalogue, settings=resources.settings)
        if new_job.is_replay:
            response.headers[REPLAYED] = "true"
        return job_service.read_job(session, new_job.job, resources.settings)

    job = resources.write(act)
    request.scope["state"][JOB_ID] = job.id
    return job


def _change(
    change: Callable[[Session], Job], resources: Resources, *, frees_space: bool = False
) -> JobRead:
    return resources.write(
        lambda session: job_service.read_job(session, change(session), resources.settings),
        frees_space=frees_space,
    )
