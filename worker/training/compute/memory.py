"""Estimates the memory of a job before it starts, and makes it fit into what is free.

The figures for activations count the tensors that a fused or a reference decoder layer keeps,
rounded up. A test checks them against what the layers really keep.
"""

from dataclasses import dataclass

from app.core.job.child.job_spec import ComputeSettings, DtypeName, ForwardName
from app.core.job.child.training_events import MemoryShort
from app.core.job.lora_shape import LoraShape
from app.core.machine.memory import Memory, measure_memory
from worker.training.failures import MemoryShortError, TrainingFailedError
from worker.training.model.attention import LONGEST_BY_PRODUCTS
from worker.training.model.base_model import ModelShape, adapted_layers
from worker.training.model.cross_entropy import CHUNK

_MOST_TOKENS = 1024
"""Largest micro-batch that is chosen, in tokens. A larger one makes no step faster."""
_FEWEST_TOKENS = 128
_FEWEST_KEYS = 224
"""Keys of a block of attention that has rows much shorter than that. The largest of 1,500 random
micro-batches."""
_ACTIVATIONS = 1_200_000_000
"""Bytes of activations that the chosen micro-batch takes at most, between the two limits above. It
depends on the model and not on the machine, so that a job has the same result on every machine."""

_PLANNED = 0.75
"""Fraction of the memory for jobs that a micro-batch is chosen for. The rest is the system's."""

_BYTES = {"float32": 4, "bfloat16": 2}
_LIBRARIES = 600_000_000
"""Bytes of a process that has loaded torch, transformers and peft, with its buffers."""
_FRAGMENTATION = 1.2
"""Memory that the allocator takes for activations, as a multiple of their size: it keeps blocks
that were freed, and the next micro-batch needs others. Measured with the smallest base model."""
_ROOM = 1.2
"""Memory that a loaded model takes, in multiples of its weights."""
_BYTES_PER_TRAINED = 16
"""Bytes per trained parameter: weight, gradient and two moments of AdamW, all in float32."""
_BYTES_PER_EMBEDDING = 32
"""Bytes per trained parameter of embeddings while a state is saved: weight, two moments, the best
weight so far, and a copy of these four. A step takes less."""


@dataclass(frozen=True, slots=True)
class _PerLayer:
    """Bytes that a layer keeps for the backward pass, for each token of a row."""

    width: int
    """Bytes per unit of the model's width."""
    mlp: int
    """Bytes per unit of the width inside the MLP."""
    attention: int
    """Bytes per head and per key of a block of attention."""
    adapted: int
    """Bytes per input of an adapted linear layer, where there is dropout."""


_KEPT: dict[tuple[ForwardName, DtypeName], _PerLayer] = {
    ("fast", "bfloat16"): _PerLayer(width=16, mlp=6, attention=2, adapted=3),
    ("fast", "float32"): _PerLayer(width=22, mlp=12, attention=4, adapted=5),
    ("plain", "bfloat16"): _PerLayer(width=14, mlp=6, attention=0, adapted=9),
    ("plain", "float32"): _PerLayer(width=20, mlp=12, attention=0, adapted=9),
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """How much memory a job takes, in bytes."""

    model: ModelShape
    lora: LoraShape
    dtype: DtypeName
    forward: ForwardName
    longest_row: int
    """Tokens of the longest row."""
    rows_per_example: int = 1
    """Rows that share a micro-batch in any case: both answers of a preference."""

    @property
    def longest_example(self) -> int:
        """Tokens of the longest example, with the padding between its rows."""
        return self.longest_row * self.rows_per_example

    @property
    def base_model(self) -> int:
        return self.model.parameters * _BYTES[self.dtype]

    @property
    def trained_parameters(self) -> int:
        """Number of parameters of the adapter, with trained embeddings."""
        return self._adapter_parameters + self._embedding_parameters

    @property
    def _adapter_parameters(self) -> int:
        linears = [self.model.linear(name) for name in self.lora.target_modules]
        return self.adapted_layers * self.lora.saved_rank * sum(map(sum, linears))

    @property
    def adapted_layers(self) -> int:
        """Number of layers with an adapter."""
        return len(adapted_layers(self.lora, self.model.layers))

    @property
    def backward_layers(self) -> int:
        """Number of layers with a backward pass: those from the first adapter on."""
        saved, layers = self.lora.modules_to_save, self.model.layers
        if "embed_tokens" in saved or (saved and self.model.has_tied_embeddings):
            return layers
        return layers - adapted_layers(self.lora, layers)[0]

    @property
    def lower_layers(self) -> int:
        """Number of layers below the first with a backward pass."""
        return self.model.layers - self.backward_layers

    @property
    def state_bytes(self) -> int:
        """Bytes of what passes from layer to layer for a token."""
        return self.model.width * _BYTES[self.dtype]

    @property
    def _embedding_parameters(self) -> int:
        matrices = len(set(self.lora.modules_to_save))
        if self.model.has_tied_embeddings:
            matrices = min(matrices, 1)
        return matrices * self.model.vocabulary * self.model.width

    @property
    def trained(self) -> int:
        """Adapter, trained embeddings and optimizer."""
        embeddings = self._embedding_parameters * _BYTES_PER_EMBEDDING
        return self._adapter_parameters * _BYTES_PER_TRAINED + embeddings

    def activations(self, tokens: int, *, checkpointing: bool) -> int:
        """Activations of a micro-batch at their peak.

        Args:
            tokens: tokens that are computed for the micro-batch.
            checkpointing: whether each layer is computed a second time for its backward pass.
        """
        one_layer = self._kept_by_layer()
        model, size = self.model, _BYTES[self.dtype]
        kept = self.backward_layers * (self.state_bytes if checkpointing else one_layer)
        kept += 3 * one_layer
        head = CHUNK * model.vocabulary * (2 * 4 + size) + 3 * tokens * model.width * 4
        return tokens * kept + head

    def allocated(self, tokens: int, *, checkpointing: bool) -> int:
        """What the process takes for the activations of a micro-batch of so many tokens."""
        return round(_FRAGMENTATION * self.activations(tokens, checkpointing=checkpointing))

    def peak(self, tokens: int, *, checkpointing: bool) -> int:
        """The whole process, with micro-batches of so many tokens."""
        allocated = self.allocated(tokens, checkpointing=checkpointing)
        return _LIBRARIES + self.base_model + self.trained + allocated

    def usual_tokens(self) -> int:
        """Tokens of a micro-batch on a machine with plenty of memory."""
        one_more = self.activations(1, checkpointing=False)
        one_more -= self.activations(0, checkpointing=False)
        return max(_FEWEST_TOKENS, min(_ACTIVATIONS // one_more, _MOST_TOKENS))

    def _kept_by_layer(self) -> int:
        """Bytes for each token."""
        model = self.model
        kept = _KEPT[self.forward, self.dtype]
        has_table = self.longest_row <= LONGEST_BY_PRODUCTS
        keys = max(self.longest_row, _FEWEST_KEYS)
        adapted = sum(model.linear(name)[0] for name in self.lora.target_modules)
        return (
            kept.width * model.width
            + kept.mlp * model.mlp_width
            + (kept.attention * model.heads * keys if has_table else 0)
            + (kept.adapted * adapted if self.lora.dropout else 0)
        )


def largest_micro_batch(limit: int, *, longest_example: int, batch_size: int) -> int:
    """Most tokens that are computed for a micro-batch in a job whose setting is `limit`."""
    return min(max(limit, longest_example), batch_size * longest_example)


def plan_memory(
    asked: ComputeSettings, footprint: Footprint, *, batch_size: int, memory: Memory
) -> tuple[int, bool]:
    """Choose the tokens of a micro-batch and gradient checkpointing so that the job fits.

    Micro-batches change the last bits of the result, so they depend on how much memory there is,
    and not on what others use of it now. A job for which there is too little gets the smallest.
    Checkpointing changes no bit, so it depends on what is free.

    Returns:
        Tokens of a micro-batch, and whether there is gradient checkpointing.
    """
    longest = footprint.longest_example
    limit = asked.micro_batch_tokens or footprint.usual_tokens()
    tokens = largest_micro_batch(limit, longest_example=longest, batch_size=batch_size)
    may_checkpoint = asked.gradient_checkpointing is not False
    if asked.micro_batch_tokens is None:
        planned_bytes = _PLANNED * memory.total
        while (
            tokens > longest
            and footprint.peak(tokens, checkpointing=may_checkpoint) > planned_bytes
        ):
            limit = tokens = max(tokens // 2, longest)
    checkpointing = asked.gradient_checkpointing
    if checkpointing is None:
        checkpointing = footprint.peak(tokens, checkpointing=False) > memory.free
    return limit, checkpointing


def explain_need(footprint: Footprint, tokens: int, *, checkpointing: bool) -> str:
    """What a job with micro-batches of so many tokens needs memory for."""
    parts = {
        f"the base model in {footprint.dtype}": footprint.base_model,
        "adapter and optimizer": footprint.trained,
        f"a micro-batch of {tokens:,} tokens": footprint.allocated(
            tokens, checkpointing=checkpointing
        ),
        "libraries": _LIBRARIES,
    }
    listed = ", ".join(f"{gigabytes(size)} for {what}" for what, size in parts.items())
    return f"It needs {listed}. Its longest example has {footprint.longest_example:,} tokens."


def advise_less(lora: LoraShape) -> str:
    """How a job takes less memory."""
    embeddings = ", leave out modules_to_save" if lora.modules_to_save else ""
    return (
        f"Lower context_length or lora_r{embeddings}, choose a smaller base model, or give the "
        "machine more memory."
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def require_free_memory(weights_bytes: int, *, what: str, total_bytes: int | None) -> int:
    """Check that a model fits into the memory that is free.

    Returns the size of the largest weights that do, in bytes.

    Args:
        weights_bytes: size of its weights.
        what: what needs it, to begin a sentence with.
        total_bytes: memory of the machine that is for jobs. None for all.

    Raises:
        TrainingFailedError: `not_enough_memory`. It does not fit even if nothing else runs.
        MemoryShortError: others use too much at the moment.
    """
    needed_bytes, memory = round(_ROOM * weights_bytes), measure_memory().limited_to(total_bytes)
    if needed_bytes <= memory.free:
        return int(memory.free / _ROOM)
    needs = f"{what} needs about {gigabytes(needed_bytes)} of memory"
    if needed_bytes > memory.total:
        raise TrainingFailedError(
            "not_enough_memory", f"{needs}, and the machine has {gigabytes(memory.total)} for jobs."
        )
    raise MemoryShortError(
        MemoryShort(
            message=f"{needs}, and {gigabytes(memory.free)} of {gigabytes(memory.total)} are free.",
            device="cpu",
            needed_bytes=needed_bytes,
            total_bytes=memory.total,
        )
    )
