"""How a job is computed: chosen once, by what the processor can do and by how long the job is.

An attempt that goes on from a saved state goes on as the first one has chosen, for another choice
would end in other bits.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from app.core.job.training_config import ComputeSettings, DeviceName, DtypeName
from worker.training.compute.cpu_speed import Speeds
from worker.training.failures import TrainingFailedError
from worker.training.model.decoder_layer import LayerShape, LayerTensors, Positions, decoder_layer
from worker.training.model.forward import Forward, ReferenceForward
from worker.training.model.fused_forward import FusedForward, LayerFunction, why_not

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_WORTH_BFLOAT16 = 1.4
"""How much faster than float32 its matrix products must be: it loses a little elsewhere."""

_WORTH_COMPILING_S = 60.0
"""What compiling must save: twice what it takes for the first time."""

_FUSED_PER_S = 2e7
"""Numbers between two layers (tokens x layers x width) for which one thread, of any processor of
today, spends a second less between the matrix products when a layer is compiled. Measured by
`python -m benchmarks.training`, with the smallest base model."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to compute."""

    tokens: int
    """That the whole job reads."""
    longest_row: int
    """Tokens of the longest example."""


@dataclass(frozen=True, slots=True)
class Choice:
    settings: ComputeSettings
    """Without a null."""
    explanation: str
    """A sentence for the job's events."""
    is_warning: bool = False
    """Whether somebody could mend something and have it faster."""


def choose_device(asked: ComputeSettings) -> DeviceName:
    """The device to train on.

    Raises:
        TrainingFailedError: `gpu_unavailable`.
    """
    has_gpu = torch.cuda.is_available()
    if asked.device == "cuda" and not has_gpu:
        raise TrainingFailedError(
            "gpu_unavailable",
            "The service is set to train on a GPU (TUNERY_TRAINING_DEVICE is cuda), but its worker "
            "has none, or a torch that was not made for it. Its operator can mend either.",
        )
    return asked.device or ("cuda" if has_gpu else "cpu")


def choose_dtype(asked: ComputeSettings, device: DeviceName, speeds: Speeds) -> DtypeName:
    """The dtype to load the base model in."""
    if asked.dtype is not None:
        return asked.dtype
    if device == "cuda":
        return "bfloat16"
    return "bfloat16" if speeds.bfloat16 >= _WORTH_BFLOAT16 * speeds.float32 else "float32"


def choose(
    asked: ComputeSettings, speeds: Speeds, model: PeftModel, work: Work, *, dtype: DtypeName
) -> Choice:
    """Choose what was left open.

    Args:
        asked: what is not open.
        speeds: of this processor.
        model: with its adapter, on the device that was chosen.
        work: of the job.
        dtype: in which the model was loaded.
    """
    objection = why_not(model, longest_row=work.longest_row)
    is_plain = objection is not None or asked.forward == "plain"
    gain = speeds.bfloat16 / speeds.float32
    is_on_gpu = model.device.type == "cuda"
    about_gain = f"in bfloat16, this processor multiplies {gain:.1f} times as fast as in float32"
    about_device = torch.cuda.get_device_name() if is_on_gpu else about_gain
    said = [f"Computing in {dtype} ({about_device})"]
    if objection:
        said.append(f"by the plain code of the libraries, for {objection}")
    elif is_plain:
        said.append("by the plain code of the libraries, as was asked")
    saved_s = 0.0 if is_on_gpu else _estimate_saved_s(model, work)
    should_compile = not is_plain and (
        saved_s >= _WORTH_COMPILING_S if asked.compile is None else asked.compile
    )
    is_compiled = should_compile and has_compiler()
    if should_compile and not is_compiled:
        said.append("not compiled, for there is no C++ compiler: with one it would be faster")
    elif is_compiled:
        said.append("compiled")
    elif not is_plain:
        said.append(
            "not compiled, as was asked"
            if asked.compile is False
            else "not compiled, which pays for longer jobs"
        )
    if asked.gradient_checkpointing:
        said.append("each layer twice, which takes less memory")
    return Choice(
        asked.model_copy(
            update={
                "device": "cuda" if is_on_gpu else "cpu",
                "forward": "plain" if is_plain else "fast",
                "dtype": dtype,
                "compile": is_compiled,
            }
        ),
        ", ".join(said) + ".",
        is_warning=objection is not None or should_compile != is_compiled,
    )


def build_forward(settings: ComputeSettings, model: PeftModel) -> Forward:
    """What reads micro-batches as was chosen."""
    is_checkpointing = settings.gradient_checkpointing or False
    if settings.forward == "plain":
        return ReferenceForward(model, is_checkpointing=is_checkpointing)
    layer = compile_layer() if settings.compile else decoder_layer
    return FusedForward(model, layer=layer, is_checkpointing=is_checkpointing)


def compile_layer() -> LayerFunction:
    """Compiled when it is first called: once for micro-batches of one row, once for all others.

    Only rows and tokens may vary. Were the width of a head free to vary as well, as it would be
    with `dynamic=True`, then the compiled code would compute every address by divisions.
    """
    from torch._dynamo import mark_dynamic  # noqa: PLC0415 - takes seconds, and few jobs need it

    compiled = torch.compile(decoder_layer, fullgraph=True)

    def run(
        hidden_BLH: Tensor, positions: Positions, layer: LayerTensors, shape: LayerShape
    ) -> Tensor:
        varying = [(tensor, (0, 1)) for tensor in (hidden_BLH, *layer.masks, positions.mask_LL)]
        varying += [(tensor, (0,)) for tensor in (positions.cos_LD, positions.sin_LD)]
        for tensor, dimensions in varying:
            for dimension in dimensions:
                if tensor.shape[dimension] > 1:
                    mark_dynamic(tensor, dimension)
        return compiled(hidden_BLH, positions, layer, shape)

    return run


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which compiled layers need."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _estimate_saved_s(model: PeftModel, work: Work) -> float:
    """About how many seconds of a job compiled layers save."""
    base: Any = model.get_base_model()
    config = base.config.get_text_config()
    numbers = work.tokens * config.num_hidden_layers * config.hidden_size
    return numbers / (_FUSED_PER_S * torch.get_num_threads())
