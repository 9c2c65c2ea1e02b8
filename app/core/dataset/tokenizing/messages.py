"""What the API asks of the process that tokenizes, and what that answers. Both cross as JSON.

The API treats every answer as hostile: it validates it here before it passes it on.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.core.job.child.job_spec import MAX_SWEEP_JOBS, ComputeSettings
from app.core.job.child.training_events import Code, DataProblem, ShortText, Text
from app.core.job.estimate import Estimate
from app.core.job.training_config import Frozen, TrainingConfig

MEMORY_BYTES = 2 * 1024**3
"""Maximum address space of the process. It needs an eighth to start."""

CPU_S = 30
"""Maximum processor time of the process in seconds. It needs a second and a half to start."""

MAX_ROWS = 50
"""Maximum number of rows of a preview."""

MAX_TOKENS_SHOWN = 2048
"""Maximum number of tokens that a preview lists for a row, over all of its examples."""

Outcome = Literal["kept", "truncated", "dropped", "too_long", "nothing_to_learn", "equal_answers"]
"""What becomes of an example: `kept` is trained on as it is, `truncated` without its end,
`dropped`, `nothing_to_learn` and `equal_answers` are left out, and `too_long` fails the job."""


class FileRequest(Frozen):
    """What every request says. The file itself is an inherited descriptor."""

    base_model: Path
    """Directory of the base model."""
    data_dir: Path
    """Directory of which the process sees nothing but the base model."""
    sandbox: Literal["auto", "required", "off"]
    """How the process is contained. It has the meaning of `TUNERY_SANDBOX`."""
    cpu_s: int = CPU_S
    """Limit on the processor time of the process, in seconds."""
    config: TrainingConfig
    """The hyperparameters of a job on the file."""


class PreviewRequest(FileRequest):
    """Asks for rows of a file as training will read them. The answer is a `Preview`."""

    kind: Literal["preview"] = "preview"
    rows: tuple[int, ...]
    """Numbers of the rows, from 1."""


class EstimateRequest(FileRequest):
    """Asks what a job, or each job of a sweep, takes. The answer is `SampledEstimates`.

    The inherited descriptors are those of the training file and, if there is one, of the validation
    file.
    """

    kind: Literal["estimate"] = "estimate"
    rows: tuple[int, ...] = Field(min_length=1, max_length=2)
    """Number of rows of each file."""
    compute: ComputeSettings
    """Choices of the service's settings on how jobs are computed."""
    machine_cache: Path
    """Directory that holds the measured speeds of this processor."""
    threads: int = Field(ge=1)
    """Threads of the processor that the job would compute with."""
    memory_bytes: int = Field(ge=1)
    """Memory of the machine that would train the job."""
    others: tuple[TrainingConfig, ...] = Field(default=(), max_length=MAX_SWEEP_JOBS)
    """Hyperparameters of the other jobs of a sweep."""


Request = Annotated[PreviewRequest | EstimateRequest, Field(discriminator="kind")]
REQUESTS = TypeAdapter[PreviewRequest | EstimateRequest](Request)


class SampledEstimate(Frozen):
    """An estimate from some rows of a file, which stand for all."""

    estimate: Estimate
    sampled_rows: int = Field(ge=1)
    """Number of rows of the training file whose tokens were counted."""


class SampledEstimates(Frozen):
    jobs: tuple[SampledEstimate, ...]
    """The estimate of the job, then those of the others."""


class Token(Frozen):
    id: int = Field(ge=0)
    text: str
    """The token as text. Where several tokens write one character, the last of them has it, and the
    texts of the others are empty."""
    is_learned: bool
    is_special: bool
    """Whether the token stands for itself and no text is split into it, such as the one that ends a
    turn."""


class PreviewedExample(Frozen):
    """One sequence of tokens that training reads."""

    outcome: Outcome
    """What becomes of the example: `kept` is trained on as it is, `truncated` without its end,
    `dropped`, `nothing_to_learn` and `equal_answers` are left out, and `too_long` fails the job.
    Both answers of a preference are left out together."""
    answer: Literal["preferred", "non_preferred"] | None = None
    """The answer of a preference that this is. Null for rows of other formats."""
    total_tokens: int = Field(ge=0)
    """Number of tokens of the whole example, before its end is cut off."""
    learned_tokens: int = Field(ge=0)
    """Number of tokens that are learned, without those that are cut off or left out."""
    learns_stop: bool
    """Whether what is learned ends with the text at which a model stops. If not, the tuned model
    may run on."""
    is_whole: bool
    """Whether the chat template writes the answers that are learned as they are. It may leave out
    thoughts, or the content beside a tool call."""
    tokens: tuple[Token, ...]
    """The first tokens. `is_cut` of the row is true if there are more."""


class PreviewedRow(Frozen):
    """One row of the file, as the base model sees it."""

    line: int = Field(ge=1)
    """Number of the line or row, from 1."""
    examples: tuple[PreviewedExample, ...] = ()
    """What the row becomes: usually one example. A conversation becomes one for each answer if the
    chat template writes earlier messages differently once others follow. A preference has two, the
    preferred answer first."""
    is_cut: bool = False
    """True if tokens or examples are left out, because the row has too many to list."""
    error: DataProblem | None = None
    """Why the base model cannot read the row. Null if it can."""


class Preview(Frozen):
    rows: tuple[PreviewedRow, ...]
    stop: ShortText
    """Text that ends an answer. Empty if no row could be read."""
    warnings: tuple[Text, ...]
    """What a job on these rows would be warned of."""


class Refused(Frozen):
    """Why there is no answer, as the error that the client gets."""

    code: Code
    message: Text
    param: ShortText | None = None


REFUSED = 3
"""Exit code of the process after a `Refused`."""
