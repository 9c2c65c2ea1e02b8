"""Wire format of estimates."""

from typing import Any, Literal

from app.core.job.estimate import Duration, Estimate
from app.schemas.bodies import ResponseBody


class JobEstimateRead(ResponseBody):
    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    model: str
    """Id of the base model in the catalogue."""
    hyperparameters: dict[str, Any]
    """All hyperparameters with their resolved values. No value is `auto`."""
    estimate: Estimate
    sampled_rows: int
    """Number of rows of the training file whose tokens were counted. They were chosen by the seed
    and stand for the others."""
    rows: int
    """Number of rows of the training file."""


class SweepEstimateRead(ResponseBody):
    object: Literal["fine_tuning.sweep.estimate"] = "fine_tuning.sweep.estimate"
    duration: Duration | None
    """Sum of the durations of the jobs: one worker runs them one after another. Null on a GPU."""
    jobs: list[JobEstimateRead]
    """What each job takes, in the order of the grid or of the list."""

    @classmethod
    def of(cls, jobs: list[JobEstimateRead]) -> "SweepEstimateRead":
        each = [job.estimate.duration for job in jobs]
        known = [duration for duration in each if duration is not None]
        total = {
            name: round(sum(getattr(duration, name) for duration in known), 1)
            for name in Duration.model_fields
        }
        return cls(duration=Duration(**total) if len(known) == len(jobs) else None, jobs=jobs)
