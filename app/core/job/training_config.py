"""What to train and how: resolved by the API, read by the training child, never changed.

The defaults are those of the script that Tunery grew out of (see `docs/reference-script.md`).
"""

import math
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from app.core.job.frozen import Frozen
from app.core.job.lora_shape import LoraShape

LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
OverlongRowBehavior = Literal["truncate", "error", "drop"]
TrainOn = Literal["all_assistant", "last_assistant", "everything"]
CheckpointChoice = Literal["final", "best"]
Recipe = Literal["reference", "auto"]
Method = Literal["supervised", "dpo"]

MAX_EXAMPLES_PER_LINE = 1000
"""Maximum number of examples that a line of a file becomes: one for each answer, if the chat
template rewrites the messages before it."""


def _read_date(value: Any) -> Any:
    """A date from its text, where a strict model would take none."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return value


CHECKED_FIELDS = (
    "max_sequence_tokens",
    "overlong_row_behavior",
    "train_on_inputs",
    "train_on",
    "template_date",
    "validation_split",
    "seed",
)
"""Hyperparameters on which the check of a job's data depends, besides its estimate. With the base
model, the files and the method, they are what `describe_inputs` in
`worker/training/preparation/prepared_data.py` lists, and what decides which rows are held out."""

DPO_RATE_DIVISOR = 10
"""Factor by which learning rates of preference tuning are lower than those of supervised jobs."""


class DpoSettings(Frozen):
    """Hyperparameters of direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290).

    Its reference is the model that the job starts from.
    """

    beta: float = Field(default=0.1, gt=0, le=2)
    """Strength of the pull towards the reference. Higher values stay closer to it."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability with which a pair is assumed to be the wrong way round (conservative DPO)."""

    reference_free: bool = False
    """Whether the reference counts as equally likely to give either answer. It is not computed."""

    length_normalized: bool = False
    """Whether the log-probability of an answer is the mean over its tokens, not the sum."""


class TrainingConfig(Frozen):
    """The hyperparameters of one job, each with its value: nothing is `auto` here."""

    lora: LoraShape = LoraShape()

    dpo: DpoSettings | None = None
    """Settings of preference tuning. Null for supervised training."""

    recipe: Recipe = "reference"
    """Recipe that chose the hyperparameters that the request left out."""

    epochs: int = Field(default=3, ge=1, le=50)
    """Number of passes over the training file."""

    max_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of optimizer steps after which training stops, whatever the number of epochs. Null for
    no limit."""

    batch_size: int = Field(default=4, ge=1, le=256)
    """Number of examples in an optimizer step, over all micro-batches."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate, after warmup."""

    lr_scheduler: LrScheduler = "linear"
    """Schedule of the learning rate after warmup. `linear` and `cosine` fall to `min_lr_ratio`."""

    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Fraction of all optimizer steps in which the learning rate rises from zero to its peak."""

    warmup_steps: int | None = Field(default=None, ge=0, le=1_000_000)
    """Number of optimizer steps in which the learning rate rises from zero to its peak. It takes
    the place of `warmup_ratio`."""

    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the peak to which `linear` and `cosine` fall."""

    loraplus_lr_ratio: float | None = Field(default=None, ge=1, le=1000)
    """LoRA+: learning rate of B matrices, in multiples of that of A matrices. Null for the same."""

    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay of AdamW, applied to the adapter's weights."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's running mean of the gradient."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of AdamW's running mean of the squared gradient."""

    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """L2 norm above which the gradient of a step is scaled down."""

    max_sequence_tokens: int = Field(default=512, ge=16, le=131_072)
    """Maximum length of an example, in tokens. `overlong_row_behavior` says what happens to longer
    ones."""

    overlong_row_behavior: OverlongRowBehavior = "truncate"
    """What happens to an example that is too long: `truncate` cuts off its end, `error` fails the
    job, and `drop` leaves the example out."""

    train_on: TrainOn = "all_assistant"
    """What is learned of a conversation: `all_assistant` for every answer whose weight is not 0,
    `last_assistant` for its last answer only, `everything` for all tokens. With `everything`, the
    prompts of `prompt` and `completion` rows are learned as well."""

    train_on_inputs: bool = False
    """Whether prompts are learned as well as answers. True means the same as `everything` in
    `train_on`."""

    template_date: Annotated[date, BeforeValidator(_read_date)] | None = None
    """Date that the chat template takes for today, if it writes one. By default, that is the day on
    which the job was created, in UTC. Null in jobs of earlier releases, whose attempts each take
    their own day."""

    seed: int = Field(ge=0, le=2**31 - 1)
    """Seed of every random number of the job: initial adapter, order of examples, dropout."""

    logging_steps: int = Field(default=10, ge=1, le=1_000_000)
    """Number of optimizer steps between two metrics events. The loss log has every step."""

    checkpoint_steps: int = Field(default=500, ge=1, le=1_000_000)
    """Number of optimizer steps between two checkpoints. Each epoch also ends with one."""

    keep_checkpoints: int | None = Field(default=None, ge=1, le=1000)
    """Most checkpoints that are kept. The oldest are deleted, but never the one that may become the
    result. Null to keep all."""

    validation_split: float | None = Field(default=None, gt=0, le=0.5)
    """Fraction of the training examples that are held out, by the seed, to evaluate on. It takes
    the place of a validation file. Null to train on all."""

    n_evals: int | None = Field(default=None, ge=1, le=1000)
    """Number of evaluations on the validation data, spread evenly over the job, in addition to
    those at each epoch's end and each checkpoint."""

    eval_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of optimizer steps between two evaluations on the validation data, in addition to
    those at each epoch's end and each checkpoint."""

    early_stopping_patience: int | None = Field(default=None, ge=1, le=1000)
    """Number of consecutive evaluations without a lower validation loss after which training stops.
    Null to train to the end."""

    early_stopping_threshold: float = Field(default=0.0, ge=0, le=1000)
    """Decrease of the validation loss that does not yet count as lower, in nats per token."""

    checkpoint_choice: CheckpointChoice | None = None
    """Choice of the adapter that is the result: `final` for that of the last step, `best` for that
    with the lowest validation loss. By default it is `best` with `early_stopping_patience`, and
    otherwise `final`."""

    @property
    def chooses_best(self) -> bool:
        """Whether the result is the adapter with the lowest validation loss."""
        if self.checkpoint_choice is None:
            return self.early_stopping_patience is not None
        return self.checkpoint_choice == "best"

    @property
    def data_key(self) -> str:
        """What the check of the data depends on, besides base model, files and the estimate."""
        return self.model_dump_json(include=set(CHECKED_FIELDS))

    @property
    def method(self) -> Method:
        """Training method, by its name on the wire."""
        return "supervised" if self.dpo is None else "dpo"

    @property
    def rows_per_example(self) -> int:
        """Number of rows of tokens that an example is: two for a pair, the preferred one first."""
        return 1 if self.dpo is None else 2

    @property
    def has_reference(self) -> bool:
        """Whether answers are compared with those of the model that the job starts from."""
        return self.dpo is not None and not self.dpo.reference_free

    def total_steps(self, examples: int) -> int:
        """Number of optimizer steps of a job that trains on so many examples."""
        return self.max_steps or self.epochs * math.ceil(examples / self.batch_size)

    def max_total_steps(self, lines: int) -> int:
        """Number of optimizer steps that a job on a file of so many lines cannot exceed."""
        return self.total_steps(lines * (MAX_EXAMPLES_PER_LINE if self.dpo is None else 1))

    @property
    def learned_part(self) -> TrainOn:
        """What is learned, from `train_on` and `train_on_inputs`."""
        return "everything" if self.train_on_inputs else self.train_on
