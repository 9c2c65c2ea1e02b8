"""Wire format of estimates."""

from typing import Any, Literal

from app.core.job.estimate import Estimate
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
