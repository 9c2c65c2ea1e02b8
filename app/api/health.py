"""/healthz: the process answers. /readyz: it can do its work."""

import contextlib
import time
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.api.deps import ReadDep, ServicesDep
from app.core.db.jobs import JobRepository
from app.core.disk import free_bytes, has_room

router = APIRouter(tags=["health"])

WORKER_SILENT_AFTER_S = 30
"""A worker that has not touched its file for so long is not counted."""


class Health(BaseModel):
    status: str


class Readiness(Health):
    model_config = ConfigDict(use_attribute_docstrings=True)

    workers: int
    """Workers on this data directory that are alive. With none, jobs wait in the queue."""
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
def readyz(session: ReadDep, services: ServicesDep) -> Readiness:
    """Whether the database answers, how many workers there are, and how full the disk is.

    Also on a full disk it is 200: what is there can be read and deleted.
    """
    return Readiness(
        status="ready",
        workers=_count_alive(services.settings.workers_dir),
        queued_jobs=JobRepository(session).count_queued(),
        free_bytes=free_bytes(services.settings.data_dir),
        has_room=has_room(services.settings),
    )


def _count_alive(workers_dir: Path) -> int:
    since = time.time() - WORKER_SILENT_AFTER_S
    alive = 0
    for path in workers_dir.glob("*.alive"):
        with contextlib.suppress(FileNotFoundError):  # that worker has just ended
            alive += path.stat().st_mtime >= since
    return alive
