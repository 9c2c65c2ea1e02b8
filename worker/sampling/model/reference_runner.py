"""Runs the layers of `transformers`, for architectures that `FusedRunner` does not know.

It reads one row after the other, so that a row sees no padding and each has a cache of its own.

Dimension key:
    B  rows of a batch
    V  vocabulary
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from worker.sampling.model.adapter_files import AdapterFiles, ModuleSizes, read_adapter
from worker.sampling.model.low_rank import FusedLowRank, fuse
from worker.sampling.model.runner import Row
from worker.training.model.base_model import ModelShape


class ReferenceCache:
    """The states of all layers for one sequence."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self.length = 0
        self.states = DynamicCache(config=config)
        # A sliding layer forgets what it does not see any more, and could not be cut.
        self.states.layers = [
            DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
            for layer in self.states.layers
        ]

    @property
    def reads_one_by_one(self) -> bool:
        """Whether tokens after the first ones must be read one at a time.

        Recurrent layers of many architectures continue only with single tokens.
        """
        layers = self.states.layers
        return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)

    @property
    def bytes(self) -> int:
        return sum(
            tensor.nbytes for layer in self.states.layers for tensor in _tensors(vars(layer))
        )

    def fork(self, length: int) -> "ReferenceCache":
        if length != self.length and self.reads_one_by_one:
            return ReferenceCache(self._config)
        fork = copy.copy(self)
        fork.states = copy.deepcopy(self.states)
        if length < self.length:
            fork.states.crop(length - self.length)
        fork.length = length
        return fork


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
        for each in cast("Sequence[Any]", inner):
            yield from _tensors(each)


@dataclass(frozen=True, slots=True)
class ReferenceAdapter:
    linears: Mapping[str, FusedLowRank]
    embeddings: Mapping[str, nn.Parameter]
    """Embeddings that take the place of those of the base model."""

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.linears.values()) + sum(
            each.nbytes for each in self.embeddings.values()
        )


class ReferenceRunner:
    """Runs a base model of any architecture that keeps its states in a `DynamicCache`.

    Args:
        model: a base model.
        shape: its shape.
        window: maximum number of tokens of a sequence.
    """

    def __init__(self, model: Any, shape: ModelShape, *, window: int) -> None:
        self.window = window
        self.vocabulary = len(model.get_output_embeddings().weight)
        self.bytes = sum(parameter.nbytes for parameter in model.parameters())
        kv_width = shape.kv_heads * shape.head_width
        self.bytes_per_token = 2 * shape.layers * kv_width * model.dtype.itemsize
        self._model = model.eval()
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._sizes = ModuleSizes.of(model)
        self._rotations = [
            module
            for module in self._modules.values()
            if getattr(module, "rope_type", None) == "dynamic"
        ]
        known = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def new_cache(self) -> ReferenceCache:
        return ReferenceCache(self._model.config)

    @torch.inference_mode()
    def load_adapter(self, files: AdapterFiles) -> ReferenceAdapter:
        weights = read_adapter(files, self._sizes)
        linears: dict[str, FusedLowRank] = {}
        for name, low_rank in weights.linears.items():
            module = self._modules[name]
            linears[name] = fuse(module.weight, module.bias, [(slice(None), low_rank)])
        embeddings = {
            name: nn.Parameter(weight.to(self._modules[name].weight), requires_grad=False)
            for name, weight in weights.embeddings.items()
        }
        return ReferenceAdapter(linears, embeddings)

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> Tensor:
        logits_V: list[Tensor] = []
        for row in rows:
            with self._adapted(cast("ReferenceAdapter | None", row.adapter)):
                logits_V.append(self._read_row(cast("ReferenceCache", row.cache), row.tokens))
        return torch.stack(logits_V)

    def _read_row(self, cache: ReferenceCache, tokens: Sequence[int]) -> Tensor:
        pieces = [tokens]
        if cache.length and cache.reads_one_by_one:
            pieces = [[token] for token in tokens]
        for rotation in self._rotations:  # forget the length of the row before
            rotation.inv_freq = rotation.original_inv_freq
            rotation.max_seq_len_cached = rotation.original_max_seq_len
        logits_1LV = torch.empty(())
        for piece in pieces:
            logits_1LV = self._model(
                input_ids=torch.tensor([list(piece)], device=self._model.device),
                past_key_values=cache.states,
                use_cache=True,
                **self._options,
            ).logits
            cache.length += len(piece)
        return logits_1LV[0, -1].float()

    @contextmanager
    def _adapted(self, adapter: ReferenceAdapter | None) -> Iterator[None]:
        """Run the model with an adapter."""
        if adapter is None:
            yield
            return
        hooks = [
            self._modules[name].register_forward_hook(partial(_add, low_rank))
            for name, low_rank in adapter.linears.items()
        ]
        originals = {name: self._modules[name].weight for name in adapter.embeddings}
        for name, weight in adapter.embeddings.items():
            self._modules[name].weight = weight
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, weight in originals.items():
                self._modules[name].weight = weight


def _add(low_rank: FusedLowRank, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Change the output of a linear layer in place."""
    del module
    low_rank.add_to(output.view(-1, output.shape[-1]), inputs[0].reshape(-1, inputs[0].shape[-1]))
