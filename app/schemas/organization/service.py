"""Wire format of the service as a whole: its workers, its queue, its disk and its health."""

from datetime import datetime
from typing import Literal

from app.core.db.repositories.workers import WorkerState, WorkerStatus
from app.core.job.status import JobStatus
from app.schemas.bodies import ResponseBody, UnixTime


class WorkerTaskRead(ResponseBody):
    job_id: str
    project_id: str
    activity: Literal["training", "checking_data"]
    """What the worker does for the job: train it, or check its data before that."""
    started_at: UnixTime
    """When the attempt or the check began."""
    threads: int | None
    """CPU threads of the training. Null for a check of data."""


class GpuRead(ResponseBody):
    name: str
    memory_bytes: int


class AbilityRead(ResponseBody):
    """What a worker can do."""

    cores: int
    """Processors of its machine: the most threads that a job may need there."""
    threads: int
    """CPU threads of a new job."""
    gpu: GpuRead | None
    """GPU that its jobs may use. Null if there is none."""
    processor: str
    """Architecture, vendor, family and model of the processor."""
    instructions: str
    """Instruction sets that the libraries may use."""
    torch: str
    """Version of torch on its machine."""
    base_models: list[str] | None
    """Ids of the base models that are installed on its machine. Null if it can fetch any."""


class WorkerRead(ResponseBody):
    id: str
    machine: str | None
    """Name of its machine. Null for a worker of an earlier version."""
    ability: AbilityRead | None
    """What it can do. Null for a worker of another version."""
    models_in_memory: list[str]
    """Ids of the base models that it has in memory. Their jobs start sooner."""
    silent_since: UnixTime | None
    """When it was noticed that its heartbeats are missing. Null for a worker that lives."""
    state: WorkerState
    """What the worker does: nothing, check data, run a job, or finish because it was told to stop
    or its machine is drained. It may have died since its last heartbeat."""
    is_alive: bool
    """True if its last heartbeat is at most 30 seconds old."""
    heartbeat_at: UnixTime
    """Time of its last heartbeat. It sends one every ten seconds."""
    started_at: UnixTime
    """When the worker was started."""
    version: str
    """Version of Tunery that the worker runs."""
    memory_bytes: int | None
    """Memory of its machine or container, free or not. Null for a worker of an earlier version."""
    tasks: list[WorkerTaskRead]
    """Jobs that it trains or whose data it checks. Usually at most one of each."""

    @classmethod
    def of(cls, worker: WorkerStatus, *, now: datetime) -> "WorkerRead":
        return cls(
            id=worker.identity.worker_id,
            machine=worker.machine,
            ability=worker.ability and AbilityRead.model_validate(worker.ability),
            models_in_memory=list(worker.models_in_memory),
            silent_since=worker.silent_since and int(worker.silent_since.timestamp()),
            state=worker.state,
            is_alive=not worker.is_silent(now=now),
            heartbeat_at=int(worker.heartbeat_at.timestamp()),
            started_at=int(worker.started_at.timestamp()),
            version=worker.version,
            memory_bytes=worker.memory_bytes,
            tasks=[WorkerTaskRead.model_validate(task) for task in worker.tasks],
        )


class ProjectQueueRead(ResponseBody):
    project_id: str
    name: str
    jobs: dict[JobStatus, int]
    """Number of unfinished jobs by status. Statuses without jobs are absent."""


class QueueRead(ResponseBody):
    jobs: dict[JobStatus, int]
    """Number of jobs of all projects by status, ended ones included."""
    oldest_waiting_at: UnixTime | None
    """When the oldest job was created that waits for a worker, to be checked or trained. Null if
    none waits."""
    projects: list[ProjectQueueRead]
    """Projects with unfinished jobs, in the order of their names."""


class DiskRead(ResponseBody):
    free_bytes: int
    """Free bytes on the disk of the data directory."""
    total_bytes: int
    """Size of the disk of the data directory, in bytes."""
    min_free_bytes: int
    """Free bytes below which uploads and new jobs are refused: `TUNERY_MIN_FREE_BYTES`."""
    has_room: bool
    """False if the disk is so full that uploads and new jobs are refused with 507."""


class FindingRead(ResponseBody):
    check: str
    """Name of the check, as `tunery doctor` prints it."""
    level: Literal["ok", "warn", "bad"]
    """Severity: `warn` if the service works but somebody should know, `bad` if something is lost,
    stuck or about to fail."""
    message: str
    advice: str
    """What the operator should do. Empty if there is nothing to do."""


class ServiceRead(ResponseBody):
    object: Literal["organization.service"] = "organization.service"
    version: str
    """Version of Tunery that the API runs."""
    database: str
    """Name and version of the database program, such as `PostgreSQL 17.2`."""
    store: str
    """Where files are: `local disk`, or the URL of the store, such as `s3://bucket/prefix`."""
    workers: list[WorkerRead]
    """Registered workers, the oldest first. One that was killed is listed until its row is removed,
    within a day."""
    drained_machines: list[str]
    """Names of the machines whose workers take nothing until `tunery undrain`."""
    queue: QueueRead
    disk: DiskRead
    findings: list[FindingRead]
    """Findings of the quick checks of `tunery doctor`. The command itself makes more checks."""
    checked_at: UnixTime
    """When the findings were made. They are used again for ten seconds."""
