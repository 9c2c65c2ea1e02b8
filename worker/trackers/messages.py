"""What crosses between a worker and the process of a tracker, one JSON object a line."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from app.core.job.frozen import Frozen
from app.core.job.integrations import Integration
from app.core.job.loss_log import StepMetrics

NOTHING_SENT = -1
"""`last_step` of a run without metrics. The first step of a loss log is 0 or 1."""

Ending = Literal["succeeded", "failed", "cancelled"]


class Access(Frozen):
    """How the operator's settings say that trackers are reached."""

    mlflow_tracking_uri: str
    mlflow_tracking_token: str
    wandb_api_key: str
    wandb_base_url: str

    def hide_in(self, text: str) -> str:
        """Replace the secrets in a text, which a library may quote."""
        for secret in (self.mlflow_tracking_token, self.wandb_api_key):
            text = text.replace(secret, "[hidden]") if secret else text
        return text


class OpenRun(Frozen):
    """The first line: asks for the run of a job, which is made if there is none.

    The reply is `Opened`.
    """

    job_id: str
    integration: Integration
    parameters: dict[str, Any]
    """Settings of the job, to be shown beside its metrics."""
    access: Access


class SendRows(Frozen):
    """Sends steps in their order. The reply is `Done`."""

    kind: Literal["rows"] = "rows"
    rows: tuple[StepMetrics, ...] = Field(min_length=1)


class CloseRun(Frozen):
    """Ends the process. The reply is `Done`."""

    kind: Literal["close"] = "close"
    ending: Ending | None
    """How the job has ended. Null if another attempt will continue it."""


Request = SendRows | CloseRun
REQUESTS = TypeAdapter[Request](Annotated[Request, Field(discriminator="kind")])


class Opened(Frozen):
    kind: Literal["opened"] = "opened"
    last_step: int
    """Last step that the run has, from this attempt or an earlier one."""
    run: str
    """Name of the run, for people."""


class Done(Frozen):
    kind: Literal["done"] = "done"


class Failed(Frozen):
    """The tracker cannot be used. The process ends."""

    kind: Literal["failed"] = "failed"
    reason: str
    """What happened, for the user. It names neither addresses nor secrets of the operator."""
    detail: str
    """What the library says, for the operator."""


Reply = Opened | Done | Failed
REPLIES = TypeAdapter[Reply](Annotated[Reply, Field(discriminator="kind")])
