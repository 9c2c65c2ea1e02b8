"""What a job takes of the memory, estimated before it begins, and how it comes to take less.

The figures for activations are those of a decoder layer of ours or of `transformers`, counted
tensor by tensor, rounded up; a test holds them to what the layers really keep.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig

from app.core.job.training_config import ComputeSettings, DtypeName, LoraShape, TrainingConfig
from worker.training.failures import TrainingFailedError
from worker.training.model.cross_entropy import CHUNK
from worker.training.model.decoder_layer import LONGEST_BY_PRODUCTS
from worker.training.model.fused_forward import KNOWN_ARCHITECTURES

_MOST_TOKENS = 1024
"""Read at once if nothing is asked for. More make no step faster."""
_FEWEST_TOKENS = 128
_ACTIVATIONS = 1_200_000_000
"""Bytes of activations that a job takes if nothing is asked for, within these bounds. It depends on
the model alone, not on the machine, so that the same job has the same result anywhere."""

_BYTES = {"float32": 4, "bfloat16": 2}
_LIBRARIES = 600_000_000
"""What a process takes that has loaded torch, transformers and peft, and its buffers."""
_BYTES_PER_TRAINED = 16
"""Weight, gradient and two moments, in float32."""


@dataclass(frozen=True, slots=True)
class _PerLayer:
    """Bytes that are kept for the backward pass, for each token of a row."""

    width: int
    """Times the model's width."""
    mlp: int
    """Times the width inside its MLP."""
    attention: int
    """Times heads, times tokens of the row."""
    adapted: int
    """Times the inputs of all its adapted linear layers, where there is dropout."""


_KEPT = {
    ("fast", "bfloat16"): _PerLayer(width=16, mlp=6, attention=2, adapted=3),
    ("fast", "float32"): _PerLayer(width=22, mlp=12, attention=4, adapted=5),
    ("plain", "bfloat16"): _PerLayer(width=14, mlp=6, attention=0, adapted=9),
    ("plain", "float32"): _PerLayer(width=20, mlp=12, attention=0, adapted=9),
}


@dataclass(frozen=True, slots=True)
class Model:
    """What of a base model decides how much memory its training takes."""

    architecture: str
    """`config.model_type`."""
    parameters: int
    layers: int
    width: int
    mlp_width: int
    heads: int
    head_width: int
    kv_heads: int
    vocabulary: int

    @classmethod
    def read(cls, directory: Path) -> "Model":
        """Read it from a base model's files, without its weights."""
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True)
        config = config.get_text_config()
        heads = config.num_attention_heads
        return cls(
            architecture=config.model_type,
            parameters=sum(_count_parameters(file) for file in directory.glob("*.safetensors")),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            mlp_width=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            heads=heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            vocabulary=config.vocab_size,
        )

    def linear(self, name: str) -> tuple[int, int]:
        """Inputs and outputs of one of a layer's linear layers; of an unknown one, the most."""
        heads, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        known = {
            "q_proj": (self.width, heads),
            "k_proj": (self.width, kv),
            "v_proj": (self.width, kv),
            "o_proj": (heads, self.width),
            "gate_proj": (self.width, self.mlp_width),
            "up_proj": (self.width, self.mlp_width),
            "down_proj": (self.mlp_width, self.width),
        }
        return known.get(name, (self.mlp_width, 2 * self.mlp_width))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a job takes, in bytes."""

    model: Model
    lora: LoraShape
    dtype: DtypeName
    is_plain: bool
    """Whether the layers are those of `transformers`."""
    longest_row: int
    """Tokens."""

    @classmethod
    def of(
        cls,
        base_model: Path,
        config: TrainingConfig,
        asked: ComputeSettings,
        dtype: DtypeName,
        *,
        longest_row: int,
    ) -> "Footprint":
        """Read it from the files of a base model and the settings of a job."""
        model = Model.read(base_model)
        is_plain = asked.forward == "plain" or model.architecture not in KNOWN_ARCHITECTURES
        return cls(model, config.lora, dtype, is_plain, longest_row)

    @property
    def base_model(self) -> int:
        return self.model.parameters * _BYTES[self.dtype]

    @property
    def trained(self) -> int:
        """Adapter and optimizer."""
        linears = [self.model.linear(name) for name in self.lora.target_modules]
        weights = self.model.layers * self.lora.rank * sum(map(sum, linears))
        return weights * _BYTES_PER_TRAINED

    def activations(self, tokens: int, *, checkpointing: bool) -> int:
        """What a micro-batch of so many tokens takes at its peak.

        Args:
            tokens: padding included.
            checkpointing: whether a layer's activations are computed anew for its backward pass.
        """
        one_layer = self._kept_by_layer()
        model, size = self.model, _BYTES[self.dtype]
        between = model.width * size
        kept = model.layers * (between if checkpointing else one_layer) + 3 * one_layer
        head = CHUNK * model.vocabulary * (2 * 4 + size) + 3 * tokens * model.width * 4
        return tokens * kept + head

    def peak(self, tokens: int, *, checkpointing: bool) -> int:
        """What the whole process takes."""
        activations = self.activations(tokens, checkpointing=checkpointing)
        return _LIBRARIES + self.base_model + self.trained + activations

    def _kept_by_layer(self) -> int:
        """For each token."""
        model = self.model
        kept = _KEPT["plain" if self.is_plain else "fast", self.dtype]
        has_table = self.longest_row <= LONGEST_BY_PRODUCTS
        adapted = sum(model.linear(name)[0] for name in self.lora.target_modules)
        return (
            kept.width * model.width
            + kept.mlp * model.mlp_width
            + (kept.attention * model.heads * self.longest_row if has_table else 0)
            + (kept.adapted * adapted if self.lora.dropout else 0)
        )


def fit(
    asked: ComputeSettings, footprint: Footprint, *, batch_size: int, room: int
) -> ComputeSettings:
    """Choose what was left open so that the job fits into `room` bytes.

    Checkpointing comes first, for it leaves every bit of the result as it was; then come fewer
    tokens at once.

    Raises:
        TrainingFailedError: `not_enough_memory`.
    """
    longest = footprint.longest_row
    at_once = asked.micro_batch_tokens or usual_tokens(footprint)
    tokens = min(max(at_once, longest), batch_size * longest)
    ways = [False, True] if asked.gradient_checkpointing is None else [asked.gradient_checkpointing]
    for checkpointing in ways:
        if footprint.peak(tokens, checkpointing=checkpointing) <= room:
            return _chosen(asked, at_once, checkpointing)
    checkpointing = ways[-1]
    while asked.micro_batch_tokens is None and tokens > longest:
        tokens = max(tokens // 2, longest)
        if footprint.peak(tokens, checkpointing=checkpointing) <= room:
            return _chosen(asked, tokens, checkpointing)
    raise TrainingFailedError(
        "not_enough_memory",
        _refusal(footprint, tokens, checkpointing=checkpointing, room=room),
        param="hyperparameters.context_length",
    )


def usual_tokens(footprint: Footprint) -> int:
    """Tokens at once where memory is no matter."""
    one_more = footprint.activations(1, checkpointing=False)
    one_more -= footprint.activations(0, checkpointing=False)
    return max(_FEWEST_TOKENS, min(_ACTIVATIONS // one_more, _MOST_TOKENS))


def _chosen(asked: ComputeSettings, tokens: int, checkpointing: bool) -> ComputeSettings:  # noqa: FBT001
    return asked.model_copy(
        update={"micro_batch_tokens": tokens, "gradient_checkpointing": checkpointing}
    )


def _refusal(footprint: Footprint, tokens: int, *, checkpointing: bool, room: int) -> str:
    parts = {
        f"the base model in {footprint.dtype}": footprint.base_model,
        "adapter and optimizer": footprint.trained,
        f"{tokens:,} tokens at once": footprint.activations(tokens, checkpointing=checkpointing),
        "libraries": _LIBRARIES,
    }
    listed = ", ".join(f"{gigabytes(size)} for {what}" for what, size in parts.items())
    return (
        f"The job needs about {gigabytes(sum(parts.values()))} of memory, and {gigabytes(room)} "
        f"are free: {listed}. Its longest example has {footprint.longest_row:,} tokens. Lower "
        "context_length or lora_rank, choose a smaller base model, or give the machine more memory."
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _count_parameters(file: Path) -> int:
    """Read the table at the beginning of a safetensors file."""
    with safe_open(file, "pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))
