"""/healthz says that the process answers, and /readyz that it can do its work."""

from fastapi import APIRouter, Request

from app.api.access import CALLER
from app.api.deps import Now, ResourcesDep
from app.api.observed_store import ObservedStore
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.queue import QueueRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.disk import free_bytes, has_room
from app.schemas.bodies import ResponseBody

router = APIRouter(tags=["health"])


class Health(ResponseBody):
    status: str


class Readiness(Health):
    workers: int
    """Number of workers with a recent heartbeat. With none, jobs wait in the queue."""
    queued_jobs: int
    """Number of jobs that wait for a worker, which checks or trains them."""
    free_bytes: int
    """Free bytes on the disk of the data directory."""
    has_room: bool
    """False if the disk is so full that uploads and new jobs are refused with 507."""
    store_answers: bool
    """False if the last request to the blob store has failed, less than a minute ago. Files then
    cannot be sent or received, and are refused with 503."""


@router.get("/healthz")
def healthz() -> Health:
    """Report that the API process is up."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(request: Request, resources: ResourcesDep, now: Now) -> Readiness | Health:
    """Report whether the API can serve requests, with the live workers and the free disk space.

    The answer is an error if the database cannot be used. A full disk is not an error, because
    files and jobs can still be read and deleted. Neither is a blob store that is away. Without a
    key, where keys are needed, the answer says only that the database can be used.
    """
    store: ObservedStore = request.app.state.store
    workers = resources.read(
        lambda session: WorkerRepository(session).count_alive(now=server_time(session, local=now))
    )
    if CALLER not in request.scope["state"]:
        return Health(status="ready")
    return Readiness(
        status="ready",
        workers=workers,
        queued_jobs=resources.read(lambda session: QueueRepository(session).count()),
        free_bytes=free_bytes(resources.settings.data_dir),
        has_room=has_room(resources.settings),
        store_answers=not store.is_away,
    )
