"""The events of a training child: one JSON object per line on its standard output.

The parent treats every line as hostile: it validates it here before it acts on it. Texts are
cleaned and cut; anything else that is out of bounds is refused.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from app.core.job.child.child_text import Code, ShortText, Text, clean
from app.core.job.child.job_spec import MAX_SWEEP_JOBS, ComputeSettings, DeviceName
from app.core.job.data_report import DataReport
from app.core.job.estimate import MAX_BYTES, Estimate
from app.core.job.frozen import Frozen
from app.core.job.loss_log import MAX_COUNT, MAX_STEP, StepMetrics
from app.core.job.scores.report import AnswerReport

Step = Annotated[int, Field(ge=1, le=MAX_STEP)]
CheckpointDirectory = Annotated[str, Field(pattern=r"^out/step-[0-9]{1,9}$")]
StateDirectory = Annotated[str, Field(pattern=r"^out/resume-[0-9]{1,9}$")]


class ProtocolError(Exception):
    """A training process has written something that it must not. The message is fit for users."""


class Noted(Frozen):
    """A message for the user. It becomes an event of the job."""

    kind: Literal["noted"] = "noted"
    level: Literal["info", "warn"] = "info"
    message: Text


class Planned(Frozen):
    """The data is tokenized, so the number of steps is known. The model is loaded next."""

    kind: Literal["planned"] = "planned"
    total_steps: Step


class Started(Frozen):
    """Model and data are loaded. The first step comes next."""

    kind: Literal["started"] = "started"
    total_steps: Step
    compute: ComputeSettings = ComputeSettings()
    """How the job is computed, with every choice made."""


class Stepped(Frozen):
    """One optimizer step is done, with the evaluation that was due after it."""

    kind: Literal["stepped"] = "stepped"
    metrics: StepMetrics


class Checkpointed(Frozen):
    """`directory`, relative to the job directory, holds a whole checkpoint with its manifest."""

    kind: Literal["checkpointed"] = "checkpointed"
    step: Step
    directory: CheckpointDirectory
    state: StateDirectory | None = None
    """Directory of the saved state of the same step, as in `Saved`. Null for the checkpoint of an
    earlier step that is made at the end because its adapter was the best."""


class Saved(Frozen):
    """`directory`, relative to the job directory, holds a whole saved state with its manifest.

    The child never deletes one, because it cannot know when the parent has copied it.
    """

    kind: Literal["saved"] = "saved"
    step: Step
    directory: StateDirectory


class Stopped(Frozen):
    """The child was asked to stop. It has reported the saved state of `step` before.

    If it took no step, `step` is the one it resumed from, or 0.
    """

    kind: Literal["stopped"] = "stopped"
    step: int = Field(ge=0, le=MAX_STEP)


class OutOfSpace(Frozen):
    """The attempt ended because a disk or a quota is full. Unfinished files are removed."""

    kind: Literal["out_of_space"] = "out_of_space"
    message: Text


class MemoryShort(Frozen):
    """It was not started: its device has too little memory, or too little of it is free.

    It can be tried again, here or on another machine.
    """

    kind: Literal["memory_short"] = "memory_short"
    message: Text
    device: DeviceName
    needed_bytes: int = Field(ge=1, le=MAX_BYTES)
    """Memory that it takes at least, by the estimate."""
    total_bytes: int = Field(ge=0, le=MAX_BYTES)
    """Memory of the device, free or not."""


class Unresumable(Frozen):
    """The saved state of `step` cannot be resumed: it is damaged, or of another job or version.

    Nothing was trained. The job can resume an older state, or start from the beginning.
    """

    kind: Literal["unresumable"] = "unresumable"
    step: Step
    message: Text


class Finished(Frozen):
    """Training has succeeded. The checkpoint of `step` is the result, and was verified."""

    kind: Literal["finished"] = "finished"
    step: Step
    trained_tokens: int = Field(ge=0, le=MAX_COUNT)


class DataProblem(Frozen):
    """A problem with one line of an uploaded file."""

    line: int = Field(ge=0, le=MAX_COUNT)
    path: ShortText
    code: Code
    message: ShortText


class _Reason(Frozen):
    code: Code
    message: Text
    param: ShortText | None = None
    errors: tuple[DataProblem, ...] = Field(default=(), max_length=50)


class JobError(_Reason):
    """Why a job failed, as the API shows it in `error`."""


class Failed(_Reason):
    """The attempt ended because of something that a user can fix. Anything else is a crash."""

    kind: Literal["failed"] = "failed"


class Checked(Frozen):
    """The job's data is tokenized and checked. A child that only checks ends with this."""

    kind: Literal["checked"] = "checked"
    report: DataReport
    error: JobError | None = None
    """Why the job cannot train on its data. Null if it can."""
    directory: Literal["out/tokens"] | None = None
    """Directory with the tokens, relative to the job directory, with its manifest. Null if the job
    cannot train."""
    others: dict[str, Estimate] = Field(default={}, max_length=MAX_SWEEP_JOBS)
    """What each of the spec's `others` takes, by the id of its job."""


class Progressed(Frozen):
    """A part of an export or a report is done."""

    kind: Literal["progressed"] = "progressed"
    fraction: float = Field(ge=0, le=1)


class Verification(Frozen):
    """How the logits of an export differ from those of the base model with the adapter.

    Differences are fractions of the largest logit.
    """

    prompts: int = Field(ge=1, le=MAX_COUNT)
    """Number of prompts whose logits were compared, at each of their tokens."""
    dtype: ShortText
    """Dtype of the exported weights."""
    computed_in: ShortText
    """Dtype in which the logits were computed."""
    max_difference: float = Field(ge=0)
    """Largest difference that was found."""
    tolerance: float = Field(gt=0)
    """Largest difference that is accepted for this dtype."""
    adapter_effect: float = Field(ge=0)
    """Largest difference between the base model without and with the adapter."""


class Exported(Frozen):
    """`directory`, relative to the job directory, holds a verified export with its manifest."""

    kind: Literal["exported"] = "exported"
    directory: Literal["out/export"] = "out/export"
    verification: Verification


class Reported(Frozen):
    """The report on a tuned model is made."""

    kind: Literal["reported"] = "reported"
    report: AnswerReport


Made = Checked | Exported | Reported
"""What a child that does not train ends with, if it succeeds."""

TrainingEvent = Annotated[
    Noted
    | Planned
    | Started
    | Stepped
    | Saved
    | Checkpointed
    | Stopped
    | OutOfSpace
    | MemoryShort
    | Unresumable
    | Finished
    | Failed
    | Checked
    | Progressed
    | Exported
    | Reported,
    Field(discriminator="kind"),
]

_adapter: TypeAdapter[TrainingEvent] = TypeAdapter(TrainingEvent)


def parse_event(line: bytes) -> TrainingEvent:
    """Read one line of a child's standard output.

    Raises:
        ProtocolError: the line is not an event.
    """
    try:
        return _adapter.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = clean(": ".join(filter(None, (place, first["msg"]))), limit=200)
        raise ProtocolError(f"It wrote a line that is not an event: {what}") from None
