"""What to train and how: resolved by the API, read by the training child, never changed.

The defaults are those of the script Tunery grew out of (see `docs/reference-script.md`).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
OverlongRowBehavior = Literal["truncate", "error", "drop"]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class LoraShape(_Frozen):
    """Shape of the adapter, in the terms of Hu et al. 2021 (arXiv:2106.09685)."""

    rank: int = Field(default=64, ge=1, le=256)
    """Inner dimension r of the update BA."""

    alpha: float = Field(default=16.0, gt=0, le=1024)
    """Numerator of the scaling factor: the update is multiplied by alpha / rank."""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Probability with which an input of the adapter is zeroed while training."""

    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter."""


class TrainingConfig(_Frozen):
    """Every knob of one fine-tune, resolved: nothing is `auto` here."""

    lora: LoraShape = LoraShape()

    epochs: int = Field(default=3, ge=1, le=50)
    """Passes over the training file."""

    max_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Stop after this many optimizer steps, whatever `epochs` says; null for no such limit."""

    batch_size: int = Field(default=4, ge=1, le=256)
    """Examples per optimizer step, over all micro-batches."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate, after warmup."""

    lr_scheduler: LrScheduler = "linear"
    """How the learning rate falls after warmup. `linear` and `cosine` end at zero."""

    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Fraction of all steps during which the learning rate rises from zero to its peak."""

    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """AdamW's decoupled weight decay, on the adapter's weights."""

    max_grad_norm: float = Field(default=1.0, gt=0, le=1000)
    """L2 norm above which a step's gradient is scaled down."""

    max_sequence_tokens: int = Field(default=512, ge=16, le=131_072)
    """Tokens of one example that are read; see `overlong_row_behavior` for the rest."""

    overlong_row_behavior: OverlongRowBehavior = "truncate"
    """What happens to an example longer than `max_sequence_tokens`: its end is cut off, the job
    is refused, or the example is left out."""

    train_on_inputs: bool = False
    """Learn the prompts as well as the answers."""

    seed: int = Field(ge=0, le=2**31 - 1)
    """Start of every random number of the job: adapter, shuffling, dropout."""

    logging_steps: int = Field(default=10, ge=1, le=1_000_000)
    """Optimizer steps between two metrics events. The loss log has every step."""

    checkpoint_steps: int = Field(default=500, ge=1, le=1_000_000)
    """Optimizer steps between two checkpoints; one is also kept at each epoch's end."""

    n_evals: int | None = Field(default=None, ge=1, le=1000)
    """Evaluations on the validation file, spread evenly over the job, besides those at each
    epoch's end and each checkpoint."""

    early_stopping_patience: int | None = Field(default=None, ge=1, le=1000)
    """Stop after this many evaluations in a row that did not improve on the best validation
    loss, and keep the adapter that had it; null to train to the end."""


class DatasetRef(_Frozen):
    """One uploaded file, as the model card and the manifest name it."""

    file_id: str
    filename: str
    sha256: str
    bytes: int
    examples: int


class BaseModelRef(_Frozen):
    """The base model, as the adapter's own configuration must name it."""

    id: str
    """Its id in the catalogue."""

    repo: str
    """Where anyone can get it: a hub id such as `Qwen/Qwen2-1.5B`, or, for a model that came
    from a local directory, that directory's name."""

    revision: str | None
    """The hub commit the weights come from; null when it did not come from a hub."""

    licence: str
    sha256: str
    """Over the sorted `name sha256` lines of its files."""


DeviceName = Literal["cpu", "cuda"]
DtypeName = Literal["float32", "bfloat16"]


class ComputeSettings(_Frozen):
    """How to compute: as the service's settings have it, and the training child chooses the rest.

    What a child has chosen, and writes into manifests and saved states, has no null.
    """

    forward: Literal["fast", "plain"] | None = None
    """Our layers, or those of `transformers`; null to take ours where they know the model."""

    device: DeviceName | None = None
    """Where the model is; null to take a GPU where there is one."""

    dtype: DtypeName | None = None
    """Of the base model and of activations; null to choose by what the processor can do."""

    compile: bool | None = None
    """Whether our layers are compiled; null to choose by the length of the job."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that are read at once, padding included, unless one row alone is longer; null to
    choose by memory."""

    gradient_checkpointing: bool | None = None
    """Whether layers are computed a second time instead of being kept in memory; null to do so
    where they would not fit."""


class JobSpec(_Frozen):
    """`job.json`: all that a training child is told besides the files next to it."""

    job_id: str
    attempt: int
    fine_tuned_model: str
    """The name under which the tuned model will be served: `ft:BASE:ORG:SUFFIX:ID`."""

    base_model: BaseModelRef
    training_file: DatasetRef
    validation_file: DatasetRef | None
    config: TrainingConfig
    threads: int = Field(ge=1)
    """Processor threads the child may use."""

    compute: ComputeSettings = ComputeSettings()

    save_interval_s: float = Field(default=120.0, gt=0)
    """Seconds of wall time after which the state is saved again; each checkpoint saves it too."""

    resume_step: int | None = Field(default=None, ge=1)
    """Optimizer steps that earlier attempts have taken: their state is in `RESUME_NAME`, their
    loss log in `LOSS_LOG_NAME`. Null to begin at the beginning."""

    resume_job_id: str | None = None
    """The job that has saved this state; null for this one."""


JOB_SPEC_NAME = "job.json"
TRAINING_DATA_NAME = "train.jsonl"
VALIDATION_DATA_NAME = "validation.jsonl"
BASE_MODEL_NAME = "base-model"
"""Symbolic link to the base model's directory."""
OUTPUT_NAME = "out"
"""What the child makes: `out/step-N/` is a checkpoint and `out/resume-N/` a saved state, whole as
soon as it has this name."""
RESUME_NAME = "resume"
"""The saved state to go on from, with its manifest; only where there is a `resume_step`."""
MACHINE_CACHE_NAME = "machine-cache"
"""Symbolic link to what all jobs of a machine share: compiled layers, speeds of the processor. A
directory that is lost costs time and nothing else."""
LOSS_LOG_NAME = "loss-log.jsonl"
"""One line of `StepMetrics` for every step so far. To resume, the parent fills it with exactly the
steps from 1 to `resume_step`; otherwise the child begins it anew."""
