"""How a job is computed: chosen once, by what the processor can do and by how long the job is.

An attempt that goes on from a saved state goes on as the first one has chosen, for another choice
would end in other bits.
"""

import os
import shutil
from dataclasses import dataclass

import torch
from peft import PeftModel

from app.core.training_config import ComputeSettings, DtypeName
from worker.training.decoder_layer import decoder_layer
from worker.training.fast_forward import FastForward, LayerFunction, why_not
from worker.training.forward import Forward, PlainForward
from worker.training.processor import Speeds

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_WORTH_BFLOAT16 = 1.4
"""How much faster than float32 its matrix products must be: it loses a little elsewhere."""

_WORTH_COMPILING_S = 600.0
"""How long a job would train without: a first compilation takes a minute or two."""

_SHARE_OF_PRODUCTS = 0.5
"""Part of a step that matrix products take, for that estimate."""


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


def choose_dtype(asked: ComputeSettings, speeds: Speeds) -> DtypeName:
    """The dtype to load the base model in."""
    if asked.dtype is not None:
        return asked.dtype
    return "bfloat16" if speeds.bfloat16 >= _WORTH_BFLOAT16 * speeds.float32 else "float32"


def choose(
    asked: ComputeSettings, speeds: Speeds, model: PeftModel, work: Work, *, dtype: DtypeName
) -> Choice:
    """Choose what was left open.

    Args:
        asked: what is not open.
        speeds: of this processor.
        model: with its adapter.
        work: of the job.
        dtype: in which the model was loaded.
    """
    objection = why_not(model, longest_row=work.longest_row)
    is_plain = objection is not None or asked.forward == "plain"
    gain = speeds.bfloat16 / speeds.float32
    about_gain = f"in bfloat16, this processor multiplies {gain:.1f} times as fast as in float32"
    said = [f"Computing in {dtype} ({about_gain})"]
    if objection:
        said.append(f"by the plain code of the libraries, for {objection}")
    elif is_plain:
        said.append("by the plain code of the libraries, as was asked")
    seconds = _estimate_seconds(model, work, torch.get_num_threads() * getattr(speeds, dtype))
    should_compile = not is_plain and (
        seconds >= _WORTH_COMPILING_S if asked.compile is None else asked.compile
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
    return Choice(
        asked.model_copy(
            update={
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
    if settings.forward == "plain":
        return PlainForward(model)
    return FastForward(model, layer=compile_layer() if settings.compile else decoder_layer)


def compile_layer() -> LayerFunction:
    """Compiled when it is first called: once for micro-batches of one row, once for all others."""
    return torch.compile(decoder_layer, dynamic=True, fullgraph=True)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which compiled layers need."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _estimate_seconds(model: PeftModel, work: Work, speed: float) -> float:
    """About how long the job trains: each weight is used once forward and once backward."""
    _, weights = model.get_nb_trainable_parameters()
    return 4 * weights * work.tokens / (speed * 1e9) / _SHARE_OF_PRODUCTS
