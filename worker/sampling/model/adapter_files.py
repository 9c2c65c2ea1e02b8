"""Reads the two files of an adapter, which strangers may have written, and checks them.

Dimension key:
    R  rank of the adapter
    I  inputs of a linear layer
    O  its outputs
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from app.core.adapter_files.peft_config import (
    PREFIX,
    UnsupportedSettingError,
    parse_config,
    refuse_unsupported,
)

_MAX_CONFIG_BYTES = 1024**2
_NEEDLESS = frozenset(
    {"exclude_modules", "layers_pattern", "layers_to_transform", "lora_bias", "lora_dropout"}
    | {"modules_to_save", "r", "rank_pattern", "target_modules"}
)
"""Settings that say how an adapter was trained, or what its weights say as well."""

_READ = frozenset({"alpha_pattern", "lora_alpha", "use_dora", "use_rslora"})

_MAX_ALPHA = 1e6

_PATTERN = re.compile(r"[\w.]+", re.ASCII)
"""Keys of `alpha_pattern` that are names and not regular expressions, which could take forever."""


class AdapterError(Exception):
    """An adapter that cannot be used. The message says why."""


class DamagedAdapterError(AdapterError):
    """The files are not those that were asked for, or are no adapter of this base model."""


class UnsupportedAdapterError(AdapterError):
    """The adapter has a form that the sampler does not know."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The files of an adapter, as they are to be read."""

    weights: BinaryIO
    """`adapter_model.safetensors`."""
    config: BinaryIO
    """`adapter_config.json`."""
    weights_sha256: str
    config_sha256: str
    max_bytes: int
    """Maximum size of the weights."""


@dataclass(frozen=True, slots=True)
class ModuleSizes:
    """The modules of a base model that an adapter may change, by name."""

    linears: Mapping[str, tuple[int, int]]
    """Outputs and inputs of the linear layers, without the output embedding."""
    embeddings: Mapping[str, tuple[int, int]]
    """Tokens and width of the input and the output embedding."""

    @classmethod
    def of(cls, model: Any) -> "ModuleSizes":
        """The modules of a loaded base model of `transformers`."""
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        linears: dict[str, tuple[int, int]] = {}
        embeddings: dict[str, tuple[int, int]] = {}
        for name, module in model.named_modules():
            if any(module is end for end in ends):
                embeddings[name] = tuple(module.weight.shape)
            elif isinstance(module, nn.Linear):
                linears[name] = (module.out_features, module.in_features)
        return cls(linears, embeddings)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to one linear layer, in the dtype of its file."""

    A_RI: Tensor
    B_OR: Tensor
    scale: float
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA. The product of B and A is to be multiplied by
    it, and so is the bias."""
    bias_O: Tensor | None = None
    magnitude_O: Tensor | None = None
    """DoRA: length of each row of the weight. None for plain LoRA."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """All tensors of an adapter, checked against the sizes of the base model."""

    linears: Mapping[str, LowRank]
    embeddings: Mapping[str, Tensor]
    """Embeddings that take the place of those of the base model."""


def read_adapter(files: AdapterFiles, sizes: ModuleSizes) -> AdapterWeights:
    """Read an adapter of a base model with modules of these sizes.

    Raises:
        DamagedAdapterError: the files are not those that were asked for, or do not fit.
        UnsupportedAdapterError: the adapter has a form that the sampler does not know.
    """
    config = _read_config(files)
    try:
        tensors = load(_read_weights(files))  # the file leaves the memory again
    except SafetensorError as error:
        raise DamagedAdapterError(f"Its weights are no safetensors file: {error}.") from error
    return _Assembly(config, sizes, tensors).build()


def _read_weights(files: AdapterFiles) -> bytes:
    return _read_exactly(files.weights, files.weights_sha256, files.max_bytes, "weights")


def _read_exactly(file: BinaryIO, sha256: str, max_bytes: int, what: str) -> bytes:
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DamagedAdapterError(f"Its {what} take more than {max_bytes:,} bytes.")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedAdapterError(f"Its {what} are not those with the SHA-256 {sha256}.")
    return content


@dataclass(frozen=True, slots=True)
class _Config:
    alpha: float
    alpha_pattern: Mapping[str, float]
    uses_root_of_rank: bool
    """rsLoRA."""
    is_dora: bool

    def scale(self, module: str, rank: int) -> float:
        alpha = next(
            (
                alpha
                for name, alpha in self.alpha_pattern.items()
                if module == name or module.endswith(f".{name}")
            ),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.uses_root_of_rank else rank)


def _read_config(files: AdapterFiles) -> _Config:
    raw = _read_exactly(files.config, files.config_sha256, _MAX_CONFIG_BYTES, "settings")
    try:
        settings = parse_config(raw)
        refuse_unsupported(settings, known=_READ | _NEEDLESS)
    except UnsupportedSettingError as error:
        raise UnsupportedAdapterError(f"adapter_config.json: {error}") from error
    except ValueError as error:
        raise DamagedAdapterError(f"adapter_config.json: {error}") from error
    alpha = settings.get("lora_alpha", 8)
    alpha_pattern = settings.get("alpha_pattern") or {}
    if not _is_number(alpha) or not isinstance(alpha_pattern, dict):
        raise DamagedAdapterError("Its lora_alpha or its alpha_pattern has the wrong type.")
    alpha_pattern = cast("dict[str, Any]", alpha_pattern)
    for name, value in alpha_pattern.items():
        if not _PATTERN.fullmatch(name) or not _is_number(value):
            raise UnsupportedAdapterError(f"Its alpha_pattern has more than names: {name[:80]!r}.")
    flags = (settings.get(name) is True for name in ("use_rslora", "use_dora"))
    return _Config(alpha, alpha_pattern, *flags)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _MAX_ALPHA


class _Assembly:
    """Sorts the tensors of a file by the module that they change."""

    def __init__(self, config: _Config, sizes: ModuleSizes, tensors: Mapping[str, Tensor]) -> None:
        self._config = config
        self._sizes = sizes
        self._tensors = dict(tensors)

    def build(self) -> AdapterWeights:
        if not self._tensors:
            raise DamagedAdapterError("It has no weights.")
        for name, tensor in self._tensors.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise DamagedAdapterError(f"{name[:120]} has values that are no finite numbers.")
        low_ranks = {name: self._take_low_rank(name) for name in self._sizes.linears}
        embeddings = {
            name: self._take(f"{name}.weight", size)
            for name, size in self._sizes.embeddings.items()
        }
        if self._tensors:
            raise UnsupportedAdapterError(
                f"It changes what the sampler cannot change: {min(self._tensors)[:120]}."
            )
        return AdapterWeights(
            {name: each for name, each in low_ranks.items() if each is not None},
            {name: each for name, each in embeddings.items() if each is not None},
        )

    def _take_low_rank(self, module: str) -> LowRank | None:
        outputs, inputs = self._sizes.linears[module]
        A_RI = self._take(f"{module}.lora_A.weight", (None, inputs))
        B_OR = self._take(f"{module}.lora_B.weight", (outputs, None))
        if A_RI is None or B_OR is None:
            if A_RI is not B_OR:
                raise DamagedAdapterError(f"It has only one of the two matrices of {module}.")
            return None
        rank = len(A_RI)
        if not rank or B_OR.shape[1] != rank:
            raise DamagedAdapterError(f"The matrices of {module} have different ranks.")
        magnitude_O = self._take(f"{module}.lora_magnitude_vector", (outputs,))
        if (magnitude_O is not None) != self._config.is_dora:
            raise DamagedAdapterError(f"Its settings and its weights disagree on DoRA: {module}.")
        return LowRank(
            A_RI,
            B_OR,
            self._config.scale(module, rank),
            bias_O=self._take(f"{module}.lora_B.bias", (outputs,)),
            magnitude_O=magnitude_O,
        )

    def _take(self, name: str, size: tuple[int | None, ...]) -> Tensor | None:
        tensor = self._tensors.pop(PREFIX + name, None)
        if tensor is None:
            return None
        fits = len(tensor.shape) == len(size) and all(
            expected in (None, actual) for expected, actual in zip(size, tensor.shape, strict=True)
        )
        if not fits:
            raise DamagedAdapterError(
                f"{name} has the shape {tuple(tensor.shape)}, which does not fit the base model."
            )
        return tensor
