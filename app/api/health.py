"""/healthz: the process answers. /readyz: it can do its work."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.api.deps import Now, ReadDep, ServicesDep
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.workers import WorkerRepository
from app.core.disk import free_bytes, has_room

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


class Readiness(Health):
    model_config = ConfigDict(use_attribute_docstrings=True)

    workers: int
    """Workers with a recent heartbeat. With none, jobs wait in the queue."""
    queued_jobs: int
    free_bytes: int
    """Free on the disk of the data directory."""
    has_room: bool
    """Whether that is enough. If not, uploads and new jobs are refused with 507 until it is."""


@router.get("/healthz")
def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(session: ReadDep, services: ServicesDep, now: Now) -> Readiness:
    """Whether the database answers, how many workers there are, and how full the disk is.

    Also on a full disk it is 200: what is there can be read and deleted.
    """
    return Readiness(
        status="ready",
        workers=WorkerRepository(session).count_alive(now=now),
        queued_jobs=JobRepository(session).count_queued(),
        free_bytes=free_bytes(services.settings.data_dir),
        has_room=has_room(services.settings),
    )
