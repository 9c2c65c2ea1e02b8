"""The statuses of a job and the transitions between them. `docs/jobs.md` draws the same table.

A request to cancel or to pause is a timestamp on the job, not a status: a running job stays
`running` until its worker has really stopped. A job whose data is being checked is cancelled at
once, and paused when the check is done.
"""

from collections.abc import Mapping
from enum import StrEnum


class JobStatus(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING_FILES: frozenset(
        {JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.QUEUED,
            JobStatus.PAUSED,
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
        }
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


UNFINISHED = [status for status in JobStatus if not status.is_terminal]
"""Statuses of a job that has not ended."""
ENDED = [status for status in JobStatus if status.is_terminal]
"""The other statuses."""


class IllegalTransitionError(Exception):
    """`TRANSITIONS` does not allow a change of status. This is a bug, not a caller's mistake."""

    def __init__(self, job_id: str, before: JobStatus, after: JobStatus) -> None:
        super().__init__(f"Job {job_id} cannot go from {before} to {after}.")
