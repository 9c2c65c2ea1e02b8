"""Wire format of the attempts at a job, which tell why each ended and how the job went on."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

from app.core.db.check_tables import DataCheck
from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from app.schemas.bodies import ResponseBody, UnixTime

_ENDS = {
    "succeeded": "The job succeeded",
    "failed": "The job failed",
    "cancelled": "The job was cancelled",
    "paused": "The job was paused",
    "released": "The worker put the job back into the queue",
    "crashed": "The training process died",
    "lost": "The worker died or stopped responding",
}
"""What happened to an attempt with this outcome, if nothing more is known."""

_UNITS = {"days": 86_400, "h": 3600, "min": 60}
"""Units of a duration with their seconds, the longest first."""


class AttemptRead(ResponseBody):
    attempt: int
    """Number of the attempt, from 1."""
    worker_id: str
    started_at: UnixTime
    ended_at: UnixTime | None
    """Unix time at which the attempt ended. Null while it runs."""
    outcome: Literal[
        "succeeded", "failed", "cancelled", "paused", "released", "crashed", "lost", None
    ]
    """How the attempt ended. `released`: its worker gave the job back. `crashed`: the training
    process died. `lost`: the worker died or stopped responding. Null while it runs."""
    from_step: int | None
    """Step of the saved state that it resumed from, 0 if it began with the first step. Null until
    the training begins, and if an earlier release of Tunery ran it."""
    to_step: int | None
    """Last step in the loss log when it ended, or now if it runs. Null if that is unknown, or if
    the training did not begin."""
    cause: str | None
    """Sentence about why it ended and how the job went on. Null while it runs."""

    @classmethod
    def of(cls, attempt: Attempt, following: Attempt | None, job: Job) -> "AttemptRead":
        is_running = attempt.ended_at is None and attempt.from_step is not None
        return cls.model_validate(
            {
                "attempt": attempt.attempt,
                "worker_id": attempt.worker_id,
                "started_at": attempt.started_at,
                "ended_at": attempt.ended_at,
                "outcome": attempt.outcome,
                "from_step": attempt.from_step,
                "to_step": job.trained_steps if is_running else attempt.to_step,
                "cause": attempt.outcome and _tell(attempt, attempt.outcome, following, job.status),
            }
        )


class DataCheckRead(ResponseBody):
    tries: int
    """Number of times that a worker began to check the data."""
    crashes: int
    """Number of tries that ended because their process died."""
    started_at: UnixTime | None
    """Unix time at which the newest try began. Null before the first."""
    ended_at: UnixTime | None
    """Unix time at which the check was done. Null until then."""


class AttemptsRead(ResponseBody):
    object: Literal["list"] = "list"
    data: list[AttemptRead]
    data_check: DataCheckRead | None
    """Check of the job's data, which comes before the first attempt. Null for a job of a release
    that did not check data."""
    has_report: bool
    """Whether there is a report on the result, made or in the making: `GET .../report`."""

    @classmethod
    def of(
        cls,
        job: Job,
        attempts: Sequence[Attempt],
        check: DataCheck | None,
        *,
        has_report: bool,
    ) -> "AttemptsRead":
        pairs = zip_longest(attempts, attempts[1:])
        return cls(
            data=[AttemptRead.of(attempt, following, job) for attempt, following in pairs],
            data_check=check
            and DataCheckRead.model_validate(
                {
                    "tries": check.number,
                    "crashes": check.crashes,
                    "started_at": check.started_at,
                    "ended_at": check.finished_at,
                }
            ),
            has_report=has_report,
        )


def _tell(attempt: Attempt, outcome: str, following: Attempt | None, status: JobStatus) -> str:
    has_trained = attempt.to_step is not None and attempt.to_step > (attempt.from_step or 0)
    place = f" at step {attempt.to_step:,}" if has_trained else ""
    if outcome == "failed" and attempt.cause:
        return f"{_ENDS[outcome]}{place}: {attempt.cause}"
    then = "; the job waits for its next attempt" if status is JobStatus.QUEUED else ""
    if following is not None:
        then = f"; the next attempt {_tell_start(following)}{_tell_pause(attempt, following)}"
    return f"{attempt.cause or _ENDS[outcome]}{place}{then}."


def _tell_start(attempt: Attempt) -> str:
    if attempt.from_step is None:
        return "began"
    if attempt.from_step == 0:
        return "started from the first step"
    return f"resumed from step {attempt.from_step:,}"


def _tell_pause(attempt: Attempt, following: Attempt) -> str:
    if attempt.ended_at is None:
        return ""
    seconds = max(0.0, (following.started_at - attempt.ended_at).total_seconds())
    for unit, length in _UNITS.items():
        if seconds >= 2 * length:
            return f" after {seconds / length:.0f} {unit}"
    return f" after {seconds:.0f} s"
