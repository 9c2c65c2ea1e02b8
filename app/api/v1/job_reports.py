"""/v1/fine_tuning/jobs/{id}/report: how a tuned model and its base model answer."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from app.api.access import PolicyRoute, needs
from app.api.deps import CallerDep, Now, ResourcesDep
from app.core.access import Scope
from app.schemas.job_reports import ReportCreate, ReportRead
from app.services.scoring import reports

router = APIRouter(
    prefix="/fine_tuning/jobs/{job_id}/report", tags=["fine-tuning"], route_class=PolicyRoute
)


@router.get("", dependencies=[needs(Scope.READ)])
def get_report(
    job_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    checkpoint: Annotated[
        str | None,
        Query(description="Id or step of a checkpoint. The default is the job's result."),
    ] = None,
) -> ReportRead:
    """Get the report of a job: greedy answers of the base model and the tuned one, with scores.

    A worker makes it when a job with validation data or `eval_prompts` has succeeded. With
    `eval_prompts_at_checkpoints`, it makes one on each checkpoint, without scores, while the job
    trains. `status` and `progress` say how far it is. The answer is 404 if there is none.
    """
    read = partial(reports.get_report, caller=caller, job_id=job_id, checkpoint=checkpoint)
    return resources.read(read)


@router.post("", status_code=202, dependencies=[needs(Scope.WRITE)])
def create_report(
    job_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    body: ReportCreate | None = None,
) -> ReportRead:
    """Make the report of a job that has succeeded, in place of an earlier one.

    With `eval_prompts`, both models answer these prompts, in place of those of the job. A job with
    neither validation data nor prompts needs them. Without validation data, a report has no scores.
    """
    prompts = (body or ReportCreate()).eval_prompts or ()
    request = partial(
        reports.request_report, caller=caller, job_id=job_id, prompts=prompts, now=now
    )
    return resources.write(request)
