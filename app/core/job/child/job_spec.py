"""What a training child is told: `job.json`, and the names of the files next to it."""

from typing import Literal

from pydantic import Field

from app.core.job.frozen import Frozen
from app.core.job.lora_shape import ParentAdapter
from app.core.job.training_config import TrainingConfig


class DatasetRef(Frozen):
    """An uploaded file, as the model card and the manifest name it."""

    file_id: str
    filename: str
    sha256: str
    bytes: int
    examples: int


class BaseModelRef(Frozen):
    """The base model of a job, and where its weights come from."""

    id: str
    """Id of the base model in the catalogue."""

    repo: str
    """Hub repository of the base model, such as `Qwen/Qwen2-1.5B`, or the name of the local
    directory that it came from."""

    revision: str | None
    """Hub commit of the weights. Null if the base model did not come from a hub, also if it was
    converted from a file that was made from `repo`."""

    licence: str
    sha256: str
    """Digest of the sorted `name sha256` lines of the base model's files."""

    @property
    def is_from_directory(self) -> bool:
        """Whether the base model came from a directory of the operator, and from no repository."""
        return "/" not in self.repo

    @property
    def address(self) -> str:
        """Base model that the adapter's configuration names.

        That of a directory is a path in the service's data directory. It begins with a dot, because
        its bare name would be the name of somebody's repository for programs that reach for a hub.
        """
        return f"./models/{self.id}" if self.is_from_directory else self.repo


MAX_SWEEP_JOBS = 64
"""Most jobs of a sweep: more than anybody compares in one table, and few enough for one request."""

TaskName = Literal["train", "check_data", "export_gguf", "export_merged", "report"]
DeviceName = Literal["cpu", "cuda"]
DtypeName = Literal["float32", "bfloat16"]
ForwardName = Literal["fast", "plain"]
"""Fused layers, or the reference layers of `transformers`. Stored jobs and settings use these
names."""


class ComputeSettings(Frozen):
    """How to compute a job. Null leaves a choice to the training child.

    The service's settings make some choices; the child makes the others, and writes all of them
    into manifests and saved states.
    """

    forward: ForwardName | None = None
    """Layers that run the model. Null for the fused ones wherever they support the model."""

    device: DeviceName | None = None
    """Device of the model. Null for a GPU if there is one."""

    dtype: DtypeName | None = None
    """Dtype of the base model and of activations. Null to choose by the speed of the processor."""

    compile: bool | None = None
    """Whether the fused layers are compiled. Null to choose by the length of the job."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a micro-batch, padding included; a longer example is alone. Null to choose by
    memory."""

    gradient_checkpointing: bool | None = None
    """Whether each layer is computed a second time for its backward pass, to save memory. Null to
    do so if the job would not fit otherwise."""


class JobSpec(Frozen):
    """`job.json`: all that a training child is told besides the files next to it."""

    task: TaskName = "train"
    """Whether the child trains, only checks the data, makes an export, or makes a report."""

    job_id: str
    attempt: int
    fine_tuned_model: str
    """Name of the tuned model: `ft:BASE:ORG:SUFFIX:ID`."""
    base_model: BaseModelRef
    parent: ParentAdapter | None = None
    """Adapter that the job continues. `PARENT_NAME` has its weights, unless a state is resumed."""
    training_file: DatasetRef
    validation_file: DatasetRef | None
    config: TrainingConfig
    others: dict[str, TrainingConfig] = Field(default={}, max_length=MAX_SWEEP_JOBS)
    """Hyperparameters of the other jobs of a sweep for which a check of the data counts, by the ids
    of these jobs."""
    threads: int = Field(ge=1)
    """Number of processor threads that the child may use."""
    memory_bytes: int | None = Field(default=None, ge=1)
    """Bytes of the machine's memory that are for jobs. Null for all."""
    memory_wait_s: float = Field(default=0.0, ge=0)
    """Seconds that a training waits for memory. The sampler may give some back meanwhile."""
    spare_disk_bytes: int = Field(default=0, ge=0)
    """Bytes that a training leaves free on its disk when it keeps outputs of layers there."""
    compute: ComputeSettings = ComputeSettings()
    is_replanned: bool = False
    """Whether a resumed job is planned again, as this machine cannot execute its plan."""
    save_interval_s: float = Field(default=120.0, gt=0)
    """Seconds of wall time between two saved states. Each checkpoint saves a state as well."""
    resume_step: int | None = Field(default=None, ge=1)
    """Number of optimizer steps that earlier attempts have taken. Their state is in `RESUME_NAME`,
    their loss log in `LOSS_LOG_NAME`. Null to start from the beginning."""
    resume_job_id: str | None = None
    """Id of the job that saved this state. Null for this job."""


JOB_SPEC_NAME = "job.json"
TRAINING_DATA_NAME = "train.jsonl"
VALIDATION_DATA_NAME = "validation.jsonl"
BASE_MODEL_NAME = "base-model"
"""Symbolic link to the base model's directory."""
OUTPUT_NAME = "out"
"""Output of the child: checkpoints `out/step-N/` and saved states `out/resume-N/`. A directory with
such a name is whole."""
PARENT_NAME = "parent.safetensors"
"""Weights of the adapter that the job continues."""
TOKENS_NAME = "tokens"
"""The data as tokens, from the check of the job's data, with its manifest. A job without it, or
with tokens of other inputs, tokenizes its data itself."""
RESUME_NAME = "resume"
"""The saved state to resume, with its manifest. Only a job with a `resume_step` has one."""
MACHINE_CACHE_NAME = "machine-cache"
"""Symbolic link to what all jobs of a machine share: the speeds of its processor. Losing the
directory costs only time."""
PROJECT_CACHE_NAME = "project-cache"
"""Symbolic link to what the jobs of a project share on a machine: compiled layers, in a directory
for each user that trains. Losing the directory costs only time."""
LOSS_LOG_NAME = "loss-log.jsonl"
"""One line of `StepMetrics` for every step so far. For a resumed job, the parent fills it with all
up to `resume_step`, and step 0 if there was one; otherwise the child starts an empty one."""
