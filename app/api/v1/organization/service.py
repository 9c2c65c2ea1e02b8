"""/v1/organization/service: workers, queue, disk and health. An extension, for admins."""

from datetime import datetime

from fastapi import APIRouter

from app.api.access import needs
from app.api.deps import Now, Resources, ResourcesDep
from app.api.requests import StrictJsonRoute
from app.core import disk
from app.core.access import Scope
from app.core.db import inspection
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Session
from app.core.version import VERSION
from app.schemas.organization.service import (
    DiskRead,
    FindingRead,
    ProjectQueueRead,
    QueueRead,
    ServiceRead,
    WorkerRead,
)

router = APIRouter(prefix="/organization", tags=["organization"], route_class=StrictJsonRoute)


@router.get("/service", dependencies=[needs(Scope.ADMIN)])
def get_service(resources: ResourcesDep, now: Now) -> ServiceRead:
    """Get what the workers do, who waits, how full the disk is, and what is wrong, if anything."""
    checkup = resources.checkups.make(now=now)
    database, workers, queue = resources.read(lambda session: _read(session, now=now))
    drained = resources.read(lambda session: list(Drains(session).list_all()))
    return ServiceRead(
        version=VERSION,
        database=database,
        workers=workers,
        drained_machines=drained,
        queue=queue,
        disk=_read_disk(resources),
        findings=[FindingRead.model_validate(finding) for finding in checkup.findings],
        checked_at=int(checkup.made_at.timestamp()),
    )


def _read(session: Session, *, now: datetime) -> tuple[str, list[WorkerRead], QueueRead]:
    """Read the name of the database, the workers and the queue from one state of the database."""
    workers = WorkerRepository(session).list_all()
    queues = inspection.count_unfinished_jobs(session)
    oldest = inspection.find_oldest_waiting(session)
    queue = QueueRead(
        jobs=inspection.count_jobs(session),
        oldest_waiting_at=int(oldest.timestamp()) if oldest else None,
        projects=[ProjectQueueRead.model_validate(each) for each in queues],
    )
    now = server_time(session, local=now)
    worker_reads = [WorkerRead.of(worker, now=now) for worker in workers]
    return inspection.describe_database(session), worker_reads, queue


def _read_disk(resources: Resources) -> DiskRead:
    data_dir = resources.settings.data_dir
    return DiskRead(
        free_bytes=disk.free_bytes(data_dir),
        total_bytes=disk.total_bytes(data_dir),
        min_free_bytes=resources.settings.min_free_bytes,
        has_room=disk.has_room(resources.settings),
    )
