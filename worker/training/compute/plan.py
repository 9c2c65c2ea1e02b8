"""How a job is computed: one plan decides device, dtype, layers, memory and compilation.

It is made before the base model is loaded, from the model's files and the job's examples. A resumed
job keeps the plan of its first attempt, because another plan would give other bits.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel

from app.core.job.child.job_spec import ComputeSettings, DeviceName, DtypeName, ForwardName
from app.core.job.child.training_events import MemoryShort
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import TrainingConfig
from app.core.machine.memory import Memory
from worker.training.compute.hardware import Speeds
from worker.training.compute.memory import (
    Footprint,
    advise_less,
    explain_need,
    gigabytes,
    largest_micro_batch,
    plan_memory,
)
from worker.training.data.batching import Piece, cut_rows
from worker.training.failures import MemoryShortError, TrainingFailedError
from worker.training.model.base_model import ModelShape
from worker.training.model.decoder_layer import compile_layer, decoder_layer
from worker.training.model.forward import (
    Forward,
    FusedForward,
    ReferenceForward,
    why_not_fused,
)

_WORTH_BFLOAT16 = 1.4
"""How much faster than float32 its matrix products must be: it loses a little elsewhere."""

COMPILING_S, _LOADING_S = 30.0, 5.0
"""Seconds that layers take to compile, and to load from the cache. They must save twice as much. A
job of one minute saves ten seconds."""

_FUSED_PER_S = 2e7
"""Numbers between two layers (tokens x layers x width) for which one thread of a current processor
spends a second less between the matrix products when a layer is compiled. Measured by
`python -m benchmarks.training`, with the smallest base model."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the base model is loaded, and in which dtype."""

    device: DeviceName
    dtype: DtypeName

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True, slots=True)
class Workload:
    """What a job has to compute."""

    base_model: ModelShape
    lora: LoraShape
    batch_size: int
    tokens: int
    """Tokens that the whole job reads."""
    longest_row: int
    """Tokens of the longest row."""
    threads: int
    """Threads of the processor that the job computes with."""
    rows_per_example: int = 1

    @classmethod
    def of_job(
        cls,
        base_model: ModelShape,
        config: TrainingConfig,
        lengths: np.ndarray,
        *,
        total_steps: int,
        threads: int,
    ) -> "Workload":
        """What a job computes whose rows, or a sample of them, have these lengths."""
        return cls(
            base_model=base_model,
            lora=config.lora,
            batch_size=config.batch_size,
            tokens=int(lengths.mean() * total_steps * config.batch_size * config.rows_per_example),
            longest_row=int(lengths.max()),
            threads=threads,
            rows_per_example=config.rows_per_example,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePlan:
    device: DeviceName
    dtype: DtypeName
    forward: ForwardName
    compile: bool
    micro_batch_tokens: int
    gradient_checkpointing: bool
    footprint: Footprint
    largest_micro_batch: int
    """Most tokens that may be computed for a micro-batch."""
    explanation: str
    """A sentence for the job's events: the choices and their reasons."""
    is_warning: bool
    """Whether the user or the operator could change something to make the job faster."""

    @property
    def settings(self) -> ComputeSettings:
        """The choices, as manifests and saved states hold them."""
        return ComputeSettings(
            **{name: getattr(self, name) for name in ComputeSettings.model_fields}
        )

    @property
    def peak_bytes(self) -> int:
        """Memory that the job takes at most, by the estimate."""
        return self.footprint.peak(
            self.largest_micro_batch, checkpointing=self.gradient_checkpointing
        )

    def cut(self, rows: Sequence[np.ndarray]) -> list[Piece]:
        """Cut rows of one step into micro-batches, given the tokens of each."""
        return cut_rows(
            rows,
            rows_per_example=self.footprint.rows_per_example,
            micro_batch_tokens=self.micro_batch_tokens,
            is_padded=self.forward == "plain",
        )

    def check_memory(self, memory: Memory) -> None:
        """Check that the job fits into the free memory of its device.

        Raises:
            MemoryShortError: it does not.
        """
        needed = self.peak_bytes
        if needed <= memory.free:
            return
        parts = explain_need(
            self.footprint, self.largest_micro_batch, checkpointing=self.gradient_checkpointing
        )
        short = MemoryShort(
            message=f"The job needs about {gigabytes(needed)} of memory, and "
            f"{gigabytes(memory.free)} of {gigabytes(memory.total)} are free. {parts} "
            f"{advise_less(self.footprint.lora)}",
            device=self.device,
            needed_bytes=needed,
            total_bytes=memory.total,
        )
        raise MemoryShortError(short)

    def build_forward(self, model: PeftModel) -> Forward:
        """Build the forward pass of the loaded model."""
        if self.forward == "plain":
            return ReferenceForward(model, is_checkpointing=self.gradient_checkpointing)
        layer = compile_layer() if self.compile else decoder_layer
        return FusedForward(model, layer=layer, is_checkpointing=self.gradient_checkpointing)


def choose_placement(
    asked: ComputeSettings, speeds: Speeds, *, has_gpu: bool | None = None
) -> Placement:
    """Choose the device and dtype to load the base model with.

    Args:
        asked: choices that the service's settings or an earlier attempt have made.
        speeds: speeds of this processor.
        has_gpu: whether there is a GPU. None to ask torch, which does not see one from everywhere.

    Raises:
        TrainingFailedError: `gpu_unavailable`.
    """
    if has_gpu is None:
        has_gpu = asked.device != "cpu" and torch.cuda.is_available()
    if asked.device == "cuda" and not has_gpu:
        raise TrainingFailedError(
            "gpu_unavailable",
            "The service is set to train on a GPU (TUNERY_TRAINING_DEVICE is cuda), but its worker "
            "has no GPU, or a torch that was not built for it. The operator of the service can fix "
            "either.",
        )
    device = asked.device or ("cuda" if has_gpu else "cpu")
    is_bfloat16 = device == "cuda" or speeds.bfloat16 >= _WORTH_BFLOAT16 * speeds.float32
    return Placement(device, asked.dtype or ("bfloat16" if is_bfloat16 else "float32"))


def make_plan(
    asked: ComputeSettings,
    placement: Placement,
    speeds: Speeds,
    work: Workload,
    *,
    memory: Memory,
    has_fused_layers: bool = True,
    is_in_cache: bool = False,
) -> ComputePlan:
    """Make every choice that `asked` leaves open. A job that cannot fit gets a plan as well.

    Args:
        asked: choices that the service's settings or an earlier attempt have made.
        placement: device and dtype.
        speeds: speeds of this processor.
        work: what the job has to compute.
        memory: memory of its device that is for jobs.
        has_fused_layers: False if the loaded model turned out to have layers of another kind.
        is_in_cache: whether an earlier job has compiled the same layers.
    """
    objection = why_not_fused(work.base_model, longest_row=work.longest_row)
    if objection is None and work.lora.use_dora:
        objection = "the faster, fused layers have no DoRA"
    if objection is None and not has_fused_layers:
        objection = f"its layers are not those of {work.base_model.architecture}"
    forward = "plain" if objection or asked.forward == "plain" else "fast"
    footprint = Footprint(
        work.base_model,
        work.lora,
        placement.dtype,
        forward,
        work.longest_row,
        work.rows_per_example,
    )
    tokens, checkpointing = plan_memory(asked, footprint, batch_size=work.batch_size, memory=memory)
    should_compile = forward == "fast" and _is_worth_compiling(
        asked, placement, work, _LOADING_S if is_in_cache else COMPILING_S
    )
    is_compiled = should_compile and has_compiler()
    reasons = [
        _explain_placement(placement, speeds),
        _explain_layers(objection)
        if forward == "plain"
        else _explain_compilation(asked, should=should_compile, is_compiled=is_compiled),
        "with gradient checkpointing to save memory" if checkpointing else "",
    ]
    return ComputePlan(
        device=placement.device,
        dtype=placement.dtype,
        forward=forward,
        compile=is_compiled,
        micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
        footprint=footprint,
        largest_micro_batch=largest_micro_batch(
            tokens, longest_example=footprint.longest_example, batch_size=work.batch_size
        ),
        explanation=", ".join(filter(None, reasons)) + ".",
        is_warning=objection is not None or should_compile != is_compiled,
    )


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which compiled layers need."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _is_worth_compiling(
    asked: ComputeSettings, placement: Placement, work: Workload, cost_s: float
) -> bool:
    if asked.compile is not None:
        return asked.compile
    numbers = work.tokens * work.base_model.layers * work.base_model.width
    return placement.device == "cpu" and numbers / (_FUSED_PER_S * work.threads) >= 2 * cost_s


def _explain_placement(placement: Placement, speeds: Speeds) -> str:
    if placement.device == "cuda":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "on a GPU"
        return f"Training in {placement.dtype} ({name})"
    gain = speeds.bfloat16 / speeds.float32
    return (
        f"Training in {placement.dtype} (this processor multiplies matrices {gain:.1f} times as "
        "fast in bfloat16 as in float32)"
    )


def _explain_layers(objection: str | None) -> str:
    why = f"because {objection}" if objection else "as configured"
    return f"with the reference layers of transformers and peft {why}"


def _explain_compilation(asked: ComputeSettings, *, should: bool, is_compiled: bool) -> str:
    if is_compiled:
        return "compiled"
    if should:
        return "not compiled because there is no C++ compiler (compiled layers are faster)"
    if asked.compile is False:
        return "not compiled, as configured"
    return "not compiled because the job is too short to gain from it"
