"""/v1/fine_tuning/jobs/estimate and /v1/fine_tuning/sweeps/estimate: what jobs would take."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.api.access import needs
from app.api.blob_reading import open_for_process
from app.api.deps import CallerDep, Now, Resources, ResourcesDep, as_json
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.api.requests import StrictJsonRoute
from app.core.access import Scope
from app.core.dataset.tokenizing.messages import SampledEstimates
from app.schemas.bodies import ResponseBody
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.job_estimates import JobEstimateRead, SweepEstimateRead
from app.schemas.sweeps import SweepCreate
from app.services.tokenizing import EstimatePlan, plan_estimate

router = APIRouter(prefix="/fine_tuning", tags=["fine-tuning"], route_class=StrictJsonRoute)
_WRITE: dict[str, Any] = {"dependencies": [needs(Scope.WRITE)]}


@router.post("/jobs/estimate", response_model=JobEstimateRead, **_WRITE)
async def estimate_job(
    request: Request, body: JobCreate, caller: CallerDep, resources: ResourcesDep, now: Now
) -> Response:
    """Estimate how long a job takes, and how much memory and disk. No job is created.

    The body is that of a new job, and so are the errors. The tokens of up to 500 rows of each file
    are counted. The answer takes some seconds.
    """
    plan = partial(plan_estimate, caller=caller, request=body, now=now)
    return await _estimate(request, resources, plan, lambda jobs: jobs[0])


@router.post("/sweeps/estimate", response_model=SweepEstimateRead, **_WRITE)
async def estimate_sweep(
    request: Request, body: SweepCreate, caller: CallerDep, resources: ResourcesDep, now: Now
) -> Response:
    """Estimate how long all jobs of a sweep take, and what each of them takes. None is created.

    The body is that of a new sweep, and so are the errors. The answer takes some seconds.
    """
    plan = partial(plan_estimate, caller=caller, request=body, now=now)
    return await _estimate(request, resources, plan, SweepEstimateRead.of)


async def _estimate(
    request: Request,
    resources: Resources,
    plan: Callable[..., EstimatePlan],
    show: Callable[[list[JobEstimateRead]], ResponseBody],
) -> Response:
    act = partial(plan, catalogue=resources.catalogue, settings=resources.settings)
    # A write, because the files of a job are locked when they are checked.
    planned = await to_thread.run_sync(resources.write, act)
    with ExitStack() as opened:
        sources = [
            opened.enter_context(await to_thread.run_sync(open_for_process, resources, blob))
            for blob in planned.blobs
        ]
        placed = await resources.with_base_model(planned.request, planned.base_model)
        work = resources.tokenizers.ask(placed, sources, SampledEstimates)
        try:
            sampled = await unless_client_leaves(request, work)
        except ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    jobs = [
        JobEstimateRead(
            model=planned.base_model.id,
            hyperparameters=hyperparameters,
            rows=planned.request.rows[0],
            **dict(each),
        )
        for hyperparameters, each in zip(planned.hyperparameters, sampled.jobs, strict=True)
    ]
    return as_json(show(jobs))
