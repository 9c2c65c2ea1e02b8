"""Wire format of projects: their limits, their usage, their erasure, and the audit trail."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from app.core.db.project_tables import month_of
from app.core.db.repositories.projects.usage import Usage
from app.schemas.bodies import ItemRead, RequestBody, ResponseBody, UnixTime

_MAX_INTEGER = 2**31 - 1
_MAX_BYTES = 2**62
_MAX_DAYS = 36_500


class ProjectUpdate(RequestBody):
    """Limits to change. A field that is absent stays as it is; null removes the limit."""

    max_stored_bytes: int | None = Field(None, ge=0, le=_MAX_BYTES)
    """Maximum number of bytes of files, parts of uploads, adapters, saved states and tokens."""
    max_queued_jobs: int | None = Field(None, ge=0, le=_MAX_INTEGER)
    """Maximum number of jobs that are `validating_files`, `queued` or `paused`."""
    max_running_jobs: int | None = Field(None, ge=0, le=_MAX_INTEGER)
    """Maximum number of jobs that run at once. Other jobs wait in the queue."""
    max_processor_hours: float | None = Field(None, ge=0, le=_MAX_INTEGER)
    """Maximum number of processor hours a month: the duration of each attempt times its CPU
    threads. Once they are used up, no job is created or started until the next month, in UTC."""
    max_duration_s: int | None = Field(None, ge=1, le=_MAX_INTEGER)
    """Maximum duration of all attempts at a job, in seconds. A job that takes longer fails with
    `max_duration_exceeded`."""
    max_requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    """Maximum number of requests a minute, of all keys of the project together."""
    file_retention_days: int | None = Field(None, ge=1, le=_MAX_DAYS)
    """Days after which an uploaded file is deleted, unless a job still needs it."""
    job_retention_days: int | None = Field(None, ge=1, le=_MAX_DAYS)
    """Days after its end at which a job is deleted, with everything it made."""
    event_retention_days: int | None = Field(None, ge=1, le=_MAX_DAYS)
    """Days after which an event of a job is deleted."""


class ProjectRead(ItemRead):
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: UnixTime
    status: Literal["active"] = "active"

    # From here on, ours. Null: no limit.
    erasing_since: UnixTime | None
    """When its erasure began: no job is started any more. If the erasure was interrupted, erase the
    project again. Null unless it is being erased."""
    max_stored_bytes: int | None
    """Maximum number of bytes stored. Null for no limit."""
    max_queued_jobs: int | None
    """Maximum number of jobs that are `validating_files`, `queued` or `paused`. Null for no
    limit."""
    max_running_jobs: int | None
    """Maximum number of jobs that run at once. Null for no limit."""
    max_processor_hours: float | None
    """Maximum number of processor hours a month. Null for no limit."""
    max_duration_s: int | None
    """Maximum duration of all attempts at a job, in seconds. Null for no limit."""
    max_requests_per_minute: int | None
    """Maximum number of requests a minute. Null for no limit."""
    file_retention_days: int | None
    """Days after which an uploaded file is deleted. Null if it is kept."""
    job_retention_days: int | None
    """Days after its end at which a job is deleted. Null if it is kept."""
    event_retention_days: int | None
    """Days after which an event of a job is deleted. Null if it is kept."""


class ProjectList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[ProjectRead]
    has_more: Literal[False] = False


class ProjectUsageRead(ResponseBody):
    object: Literal["organization.project.usage"] = "organization.project.usage"
    project_id: str
    month: str
    """Month that `processor_seconds` and `requests` are about, such as `2030-01`, in UTC."""
    stored_bytes: int
    """Bytes of files, parts of uploads, adapters, saved states and tokens."""
    jobs: dict[str, int]
    """Number of jobs by status. Statuses without jobs are absent."""
    processor_seconds: float
    """Duration of each attempt times its CPU threads, in seconds. An attempt counts in the month
    in which it ends."""
    requests: int
    """Requests with a key of the project, as of the last minute."""

    @classmethod
    def of(cls, project_id: str, usage: Usage, *, now: datetime) -> "ProjectUsageRead":
        return cls(
            project_id=project_id,
            month=month_of(now),
            stored_bytes=usage.stored_bytes,
            jobs={status.value: count for status, count in usage.jobs.items()},
            processor_seconds=round(usage.processor_s, 3),
            requests=usage.requests,
        )


class ProjectErased(ResponseBody):
    id: str
    object: Literal["organization.project.deleted"] = "organization.project.deleted"
    deleted: Literal[True] = True
    rows: dict[str, int]
    """Number of rows that were deleted, by table."""
    blobs: int
    """Number of files that were deleted from the blob store."""
    bytes: int
    """Total size of those files."""
    blobs_left: int
    """Number of those files that the blob store still has, because it was away. A worker deletes
    them once it is back, within a day."""


class AuditEventRead(ItemRead):
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    """What was done, such as `job.cancelled`."""
    effective_at: UnixTime
    project_id: str
    object_id: str
    """Id of what was created, changed, deleted or downloaded."""
    key_id: str | None
    """Id of the API key that was used. Null for the command line, and while no keys are used."""
    request_id: str | None
    """`x-request-id` of the request. Null for the command line."""
