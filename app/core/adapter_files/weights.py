"""Checks the weights of an adapter against its base model, and copies them."""

import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from app.core.adapter_files.archive import ImportRefusedError
from app.core.adapter_files.header import HeaderError, Tensor, read_header, read_shapes
from app.core.adapter_files.peft_config import PREFIX
from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from app.core.job.lora_shape import LoraShape

_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")
"""The index of a layer in the name of a tensor, as `peft` finds it."""
_CHUNK_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 10_000_000
_EXPONENT_F16 = 0x7C
_NOT_FINITE_F16 = bytes(byte for byte in range(256) if byte & _EXPONENT_F16 == _EXPONENT_F16)
"""High bytes of the half-precision numbers that are infinite or not a number."""


def copy_weights(
    source: IO[bytes], target: Path, *, declared_bytes: int, shape: LoraShape, base_model: Path
) -> None:
    """Check the weights of an adapter while they are copied.

    Args:
        source: a file in the format of safetensors, at its first byte.
        target: where the copy is written, which does not exist.
        declared_bytes: size of the file.
        shape: shape of the adapter, as its configuration says.
        base_model: directory of the base model.

    Raises:
        ImportRefusedError: the tensors are not those of such an adapter of the base model, or a
            number is not finite.
    """
    try:
        header = read_header(source, max_bytes=_MAX_HEADER_BYTES)
    except HeaderError as error:
        raise _refused(f"{error}.") from error
    _compare({tensor.name: tensor.shape for tensor in header.tensors}, _expect(shape, base_model))
    if header.file_bytes != declared_bytes:
        raise _refused(f"it has {declared_bytes:,} bytes, and not {header.file_bytes:,}.")
    with target.open("xb") as copy:
        copy.write(header.content)
        for tensor in header.tensors:
            for chunk in _read(source, tensor):
                if not _are_finite(chunk, tensor.dtype):
                    raise _refused(f"{tensor.name} has numbers that are not finite.")
                copy.write(chunk)


def _expect(shape: LoraShape, base_model: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by its name, as `peft` writes them."""
    base = {
        name.removesuffix(".weight"): size
        for file in sorted(base_model.glob("*.safetensors"))
        for name, size in read_shapes(file).items()
    }
    expected: dict[str, tuple[int, ...]] = {}
    layer_of = {name: int(found[1]) for name in base if (found := _LAYER.match(name))}
    try:
        layers = shape.adapted_layers(max(layer_of.values(), default=-1) + 1)
    except ValueError as error:
        raise ImportRefusedError(f"{ADAPTER_CONFIG_NAME}: {error}") from error
    for name, size in base.items():
        if name.rpartition(".")[2] in shape.target_modules and layer_of.get(name, -1) in layers:
            outputs, inputs = size
            expected[f"{PREFIX}{name}.lora_A.weight"] = (shape.rank, inputs)
            expected[f"{PREFIX}{name}.lora_B.weight"] = (outputs, shape.rank)
            if shape.use_dora:
                expected[f"{PREFIX}{name}.lora_magnitude_vector"] = (outputs,)
    if shape.modules_to_save:
        expected |= _expect_embeddings(shape.modules_to_save, base)
    return expected


def _expect_embeddings(
    names: Sequence[str], base: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Embeddings that are trained whole. If the base model has one matrix, both are in the file."""
    (inputs,) = (name for name in base if name.endswith("embed_tokens"))
    paths = {"embed_tokens": inputs, "lm_head": "lm_head"}
    is_tied = "lm_head" not in base
    return {
        f"{PREFIX}{path}.weight": tuple(base.get(path, base[inputs]))
        for name, path in paths.items()
        if is_tied or name in names
    }


def _compare(
    actual: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for name in sorted(expected.keys() - actual.keys()):
        raise _refused(f"{name} is missing, which such an adapter of this base model has.")
    for name in sorted(actual.keys() - expected.keys()):
        raise _refused(f"{name[:200]!r} does not belong to such an adapter of this base model.")
    for name, size in expected.items():
        if actual[name] != size:
            raise _refused(f"{name} has the shape {[*actual[name]]}, and not {[*size]}.")


def _read(source: IO[bytes], tensor: Tensor) -> Iterator[bytes]:
    left = tensor.end - tensor.begin
    while left:
        wanted = min(left, _CHUNK_BYTES)
        chunk = source.read(wanted)
        if len(chunk) < wanted:
            raise _refused("it is cut off.")
        yield chunk
        left -= len(chunk)


def _are_finite(chunk: bytes, dtype: str) -> bool:
    """Whether all numbers of a chunk, which ends with a whole number, are finite."""
    if dtype == "F16":
        high = chunk[1::2]
        return len(high.translate(None, _NOT_FINITE_F16)) == len(high)
    if dtype == "BF16":  # the upper half of a number in single precision
        wide = bytearray(2 * len(chunk))
        wide[2::4], wide[3::4] = chunk[0::2], chunk[1::2]
        chunk = bytes(wide)
    return math.isfinite(sum(array("f", chunk)))  # a double holds the sum of any such numbers


def _refused(what: str) -> ImportRefusedError:
    return ImportRefusedError(f"{ADAPTER_WEIGHTS_NAME}: {what}")
