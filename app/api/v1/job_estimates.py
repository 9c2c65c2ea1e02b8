"""/v1/fine_tuning/jobs/estimate: what a job would take."""

from contextlib import ExitStack
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.api.access import needs
from app.api.blob_reading import open_for_process
from app.api.deps import CallerDep, Now, ResourcesDep, as_json
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.api.requests import StrictJsonRoute
from app.core.access import Scope
from app.core.dataset.tokenizing.messages import SampledEstimate
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.job_estimates import JobEstimateRead
from app.services.tokenizing import plan_estimate

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictJsonRoute)


@router.post("/estimate", response_model=JobEstimateRead, dependencies=[needs(Scope.WRITE)])
async def estimate_job(
    request: Request, body: JobCreate, caller: CallerDep, resources: ResourcesDep, now: Now
) -> Response:
    """Estimate how long a job takes, and how much memory and disk. No job is created.

    The body is that of a new job, and so are the errors. The tokens of up to 500 rows of each file
    are counted. The answer takes some seconds.
    """
    plan = partial(
        plan_estimate,
        caller=caller,
        request=body,
        catalogue=resources.catalogue,
        settings=resources.settings,
        now=now,
    )
    # A write, because the files of a job are locked when they are checked.
    planned = await to_thread.run_sync(resources.write, plan)
    with ExitStack() as opened:
        sources = [
            opened.enter_context(await to_thread.run_sync(open_for_process, resources, blob))
            for blob in planned.blobs
        ]
        placed = await resources.with_base_model(planned.request, planned.base_model)
        work = resources.tokenizers.ask(placed, sources, SampledEstimate)
        try:
            sampled = await unless_client_leaves(request, work)
        except ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    return as_json(
        JobEstimateRead(
            model=planned.model,
            hyperparameters=planned.hyperparameters,
            rows=planned.request.rows[0],
            **dict(sampled),
        )
    )
