"""/v1/fine_tuning/sweeps: jobs that one request makes, with different hyperparameters."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response

from app.api.access import needs
from app.api.deps import (
    LIMIT,
    REPLAYED,
    REPLAYED_HEADER,
    CallerDep,
    Cursor,
    Now,
    OriginDep,
    ResourcesDep,
    as_json,
)
from app.api.requests import StrictJsonRoute
from app.core.access import Scope
from app.core.db.session import Session
from app.core.ids import IdPrefix
from app.schemas.bodies import PageRead
from app.schemas.sweeps import SweepCreate, SweepRead
from app.services.sweeps import sweeps as sweep_service
from app.services.sweeps.creation import create_sweep_once

router = APIRouter(prefix="/fine_tuning/sweeps", tags=["fine-tuning"], route_class=StrictJsonRoute)


@router.post("", responses=REPLAYED_HEADER, dependencies=[needs(Scope.WRITE)])
def create_sweep(
    body: SweepCreate,
    response: Response,
    origin: OriginDep,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
) -> SweepRead:
    """Create a job for each point of a grid or a list of hyperparameters: all of them or none.

    The body is that of a job, with validation data, and `sweep`. Jobs that need the same tokens
    have their data checked once. The jobs are ordinary jobs with a `sweep_id`.

    The request is safe to repeat with the header `Idempotency-Key`: the same key and body make one
    sweep.
    """

    def act(session: Session) -> SweepRead:
        new_job = create_sweep_once(
            session,
            caller,
            body,
            origin,
            catalogue=resources.catalogue,
            settings=resources.settings,
            now=now,
        )
        if new_job.is_replay:
            response.headers[REPLAYED] = "true"
        return sweep_service.get_sweep(
            session, caller, str(new_job.job.sweep_id), resources.settings
        )

    return resources.write(act)


@router.get("", response_model=PageRead[SweepRead], dependencies=[needs(Scope.READ)])
async def list_sweeps(
    caller: CallerDep,
    resources: ResourcesDep,
    after: Annotated[str | None, Depends(Cursor(IdPrefix.SWEEP))],
    limit: Annotated[int, Query(ge=1, le=100, description=LIMIT)] = 20,
) -> Response:
    """List sweeps, newest first."""
    read = partial(
        sweep_service.list_sweeps,
        caller=caller,
        settings=resources.settings,
        after=after,
        limit=limit,
    )
    return await to_thread.run_sync(lambda: as_json(resources.read(read)))


@router.get("/{sweep_id}", response_model=SweepRead, dependencies=[needs(Scope.READ)])
async def get_sweep(sweep_id: str, caller: CallerDep, resources: ResourcesDep) -> Response:
    """Get a sweep: its jobs by validation loss, the lowest first."""
    read = partial(
        sweep_service.get_sweep, caller=caller, sweep_id=sweep_id, settings=resources.settings
    )
    return await to_thread.run_sync(lambda: as_json(resources.read(read)))


@router.post("/{sweep_id}/cancel", dependencies=[needs(Scope.WRITE)])
def cancel_sweep(sweep_id: str, caller: CallerDep, resources: ResourcesDep, now: Now) -> SweepRead:
    """Stop all jobs of a sweep that have not ended. Cancelling it again has no further effect.

    Each job is stopped like a job that is cancelled alone.
    """

    def act(session: Session) -> SweepRead:
        sweep_service.cancel_sweep(session, caller, sweep_id, now=now)
        return sweep_service.get_sweep(session, caller, sweep_id, resources.settings)

    return resources.write(act, frees_space=True)
