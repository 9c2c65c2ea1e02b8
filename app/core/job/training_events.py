"""The events of a training child: one JSON object per line on its standard output.

The parent treats every line as hostile: it validates it here before it acts on it.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import Frozen

_STATE_PATTERN = r"^out/resume-\d{1,9}$"


class Noted(Frozen):
    """A message for the user. It becomes an event of the job."""

    kind: Literal["noted"] = "noted"
    level: Literal["info", "warn"] = "info"
    message: str = Field(max_length=10_000)


class Planned(Frozen):
    """The data is tokenized, so the number of steps is known. The model is loaded next."""

    kind: Literal["planned"] = "planned"
    total_steps: int = Field(ge=1)


class Started(Frozen):
    """Model and data are loaded. The first step comes next."""

    kind: Literal["started"] = "started"
    total_steps: int = Field(ge=1)


class Stepped(Frozen):
    """One optimizer step is done, with the evaluation that was due after it."""

    kind: Literal["stepped"] = "stepped"
    metrics: StepMetrics


class Checkpointed(Frozen):
    """`directory`, relative to the job directory, holds a whole checkpoint with its manifest."""

    kind: Literal["checkpointed"] = "checkpointed"
    step: int = Field(ge=1)
    directory: str = Field(pattern=r"^out/step-\d{1,9}$")
    state: str | None = Field(default=None, pattern=_STATE_PATTERN)
    """Directory of the saved state of the same step, as in `Saved`. Null for the checkpoint of an
    earlier step that is made at the end because its adapter was the best."""


class Saved(Frozen):
    """`directory`, relative to the job directory, holds a whole saved state with its manifest.

    The child never deletes one, because it cannot know when the parent has copied it.
    """

    kind: Literal["saved"] = "saved"
    step: int = Field(ge=1)
    directory: str = Field(pattern=_STATE_PATTERN)


class Stopped(Frozen):
    """The child was asked to stop. It has reported the saved state of `step` before.

    If it took no step, `step` is the one it resumed from, or 0.
    """

    kind: Literal["stopped"] = "stopped"
    step: int = Field(ge=0)


class OutOfSpace(Frozen):
    """The attempt ended because a disk or a quota is full. Unfinished files are removed."""

    kind: Literal["out_of_space"] = "out_of_space"
    message: str = Field(max_length=10_000)


class Unresumable(Frozen):
    """The saved state of `step` cannot be resumed: it is damaged, or of another job or version.

    Nothing was trained. The job can resume an older state, or start from the beginning.
    """

    kind: Literal["unresumable"] = "unresumable"
    step: int = Field(ge=1)
    message: str = Field(max_length=10_000)


class Finished(Frozen):
    """Training has succeeded. The checkpoint of `step` is the result, and was verified."""

    kind: Literal["finished"] = "finished"
    step: int = Field(ge=1)
    trained_tokens: int = Field(ge=0)


class DataProblem(Frozen):
    """A problem with one line of an uploaded file."""

    line: int
    path: str
    code: str
    message: str


class JobError(Frozen):
    """Why a job failed, as the API shows it in `error`."""

    code: str
    message: str
    param: str | None = None
    errors: tuple[DataProblem, ...] = ()


class Failed(Frozen):
    """The attempt ended because of something that a user can fix. Anything else is a crash."""

    kind: Literal["failed"] = "failed"
    code: str = Field(max_length=100)
    message: str = Field(max_length=10_000)
    param: str | None = None
    errors: tuple[DataProblem, ...] = Field(default=(), max_length=50)


TrainingEvent = Annotated[
    Noted
    | Planned
    | Started
    | Stepped
    | Saved
    | Checkpointed
    | Stopped
    | OutOfSpace
    | Unresumable
    | Finished
    | Failed,
    Field(discriminator="kind"),
]

_adapter: TypeAdapter[TrainingEvent] = TypeAdapter(TrainingEvent)


def parse_event(line: bytes) -> TrainingEvent:
    """Read one line of a child's standard output.

    Raises:
        pydantic.ValidationError: the line is not an event.
    """
    return _adapter.validate_json(line)
