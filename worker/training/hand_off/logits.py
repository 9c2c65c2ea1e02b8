"""Compares what an export computes with what the base model with the adapter computes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from app.core.job.child.job_spec import JobSpec
from app.core.job.child.training_events import Verification
from worker.training.artifacts.checkpoint import read_logits
from worker.training.compute.memory import require_free_memory
from worker.training.data.tokenizer import load_tokenizer
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import ModelShape

_PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time there was a fox, and it",
)
_MAX_TOKENS = 32

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of a logit, as a fraction of the largest logit, by the dtype of the weights.
A merged weight is rounded once to this dtype; the base model with the adapter is not."""

_LEAST_CHANGE = 0.1
"""Least difference of an export from the base model, as a fraction of what the adapter changes."""

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
"""By the names of the format of safetensors. Some models have a few weights in float32 besides."""

Logits = Sequence[Tensor]


def stored_dtype(base_model: Path) -> torch.dtype:
    """Dtype of the weights of a base model, in which its merged model is stored as well."""
    with safe_open(min(base_model.glob("*.safetensors")), "pt") as tensors:  # pyright: ignore[reportUnknownVariableType]
        names = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return next((dtype for name, dtype in _DTYPES.items() if name in names), torch.float32)


class Probe:
    """Prompts for a base model, and the dtype in which models with its shape are computed.

    Attributes:
        dtype: float32 if that fits in memory, otherwise the dtype of the weights.

    Raises:
        TrainingFailedError, MemoryShortError: as `require_free_memory` raises them.
    """

    def __init__(self, base_model: Path, spec: JobSpec) -> None:
        tokenizer = load_tokenizer(base_model)
        encoded = [tokenizer(prompt)["input_ids"][:_MAX_TOKENS] for prompt in _PROMPTS]
        self._prompts = [torch.tensor([ids]) for ids in encoded]
        stored, parameters = stored_dtype(base_model), ModelShape.read(base_model).parameters
        largest_bytes = require_free_memory(
            parameters * stored.itemsize, what="The export", total_bytes=spec.memory_bytes
        )
        has_room = parameters * torch.float32.itemsize <= largest_bytes
        self.dtype = torch.float32 if has_room else stored

    def read(self, model: nn.Module) -> Logits:
        """The logits at each token of each prompt."""
        return [read_logits(model, ids).float() for ids in self._prompts]

    def compare(
        self, export: Logits, *, tuned: Logits, untuned: Logits, dtype: torch.dtype
    ) -> Verification:
        """Compare an export with the base model with and without the adapter.

        Args:
            export: logits of the export.
            tuned: logits of the base model with the adapter.
            untuned: logits of the base model.
            dtype: dtype of the exported weights.

        Raises:
            TrainingFailedError: `export_not_equal`.
        """
        difference = _difference(export, tuned)
        tolerance = max(TOLERANCES[dtype], TOLERANCES[self.dtype])
        if not difference <= tolerance:  # also if it is not a number
            raise TrainingFailedError(
                "export_not_equal",
                "The export was made and does not compute what the adapter does: logits differ by "
                f"{difference:.2g} of the largest, and {tolerance:g} is accepted for "
                f"{_name(dtype)}. Report a bug with the name of the model.",
            )
        effect = _difference(untuned, tuned)
        if _difference(export, untuned) < _LEAST_CHANGE * effect:
            raise TrainingFailedError(
                "export_not_equal",
                f"The export answers as the base model does: rounded to {_name(dtype)}, hardly "
                "anything is left of what the adapter changes. Take format=gguf or format=peft.",
            )
        return Verification(
            prompts=len(self._prompts),
            dtype=_name(dtype),
            computed_in=_name(self.dtype),
            max_difference=difference,
            tolerance=tolerance,
            adapter_effect=effect,
        )


def _difference(some: Logits, expected: Logits) -> float:
    """Largest difference of a logit, as a fraction of the largest that is expected."""
    pairs = zip(some, expected, strict=True)
    largest = max(logits.abs().max().item() for logits in expected)
    return max((one - other).abs().max().item() for one, other in pairs) / (largest or 1.0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
