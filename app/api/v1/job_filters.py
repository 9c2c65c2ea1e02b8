"""The filters of the list of jobs, from the query of a request."""

from typing import Annotated

from fastapi import Query, Request

from app.api.deps import ResourcesDep
from app.core.db.repositories.jobs import JobFilter
from app.core.errors import InvalidRequestError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.schemas.fine_tuning_jobs import MAX_LABELS, status_shown

_MAX_SEARCH_LENGTH = 100


async def read_filter(
    request: Request,
    resources: ResourcesDep,
    status: Annotated[
        str | None,
        Query(description="Only jobs with one of these statuses, separated by commas."),
    ] = None,
    base_model: Annotated[
        str | None, Query(description="Only jobs that tune the base model with this id.")
    ] = None,
    search: Annotated[
        str | None,
        Query(
            max_length=_MAX_SEARCH_LENGTH,
            description="Only jobs with this text in their id, the name of the model or base "
            "model, the suffix, or the key or value of a label. Case does not matter.",
        ),
    ] = None,
) -> JobFilter:
    """Read the filters. An empty one is the same as none.

    Raises:
        InvalidRequestError: a status is unknown, or there are more labels than a job can have.
    """
    return JobFilter(
        statuses=_statuses(status, resources.settings) if status else None,
        base_model=base_model or None,
        search=search or None,
        metadata=_labels(request),
    )


def _statuses(text: str, settings: Settings) -> frozenset[JobStatus]:
    """The statuses that the API shows as one of those in `text`."""
    shown = {status: status_shown(status, settings) for status in JobStatus}
    wanted = {each.strip() for each in text.split(",")}
    unknown = sorted(wanted - set(shown.values()))
    if unknown:
        valid = ", ".join(dict.fromkeys(shown.values()))
        raise InvalidRequestError(
            f"No job has the status {unknown[0]!r:.80}. Choose from: {valid}.", param="status"
        )
    return frozenset(status for status, name in shown.items() if name in wanted)


def _labels(request: Request) -> dict[str, str] | None:
    if request.query_params.get("metadata") == "null":
        return None
    labels = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if len(labels) > MAX_LABELS:
        raise InvalidRequestError(
            f"A job has at most {MAX_LABELS} labels. Filter by {MAX_LABELS} labels or fewer.",
            param="metadata",
        )
    return labels
