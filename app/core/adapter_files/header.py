"""The header of a file in the format of safetensors: which tensors are where, and of what shape.

Source: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

from app.core import strict_json

MAX_HEADER_BYTES = 100_000_000
"""Limit of the format itself."""
_LENGTH_BYTES = 8

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
"""Bytes of a number of each type that the weights of an adapter may have."""


class HeaderError(ValueError):
    """The header cannot be read, or does not describe the bytes behind it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte behind the header."""
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    content: bytes
    """The header as it was read, with its length before it."""
    tensors: tuple[Tensor, ...]
    """In the order of their bytes, without gaps."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.content) + (self.tensors[-1].end if self.tensors else 0)


def read_header(source: IO[bytes], *, max_bytes: int) -> Header:
    """Read and check the header of an adapter's weights.

    Args:
        source: the file, at its first byte.
        max_bytes: maximum length of the header.

    Raises:
        HeaderError: it cannot be read, or its tensors are of other types, overlap or leave gaps.
    """
    start = source.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < _LENGTH_BYTES or not 0 < length <= max_bytes:
        raise HeaderError("its header has no valid length")
    text = source.read(length)
    try:
        described = strict_json.loads(text)
    except ValueError as error:
        raise HeaderError(f"its header is not JSON: {error}") from error
    if len(text) < length or not isinstance(described, dict):
        raise HeaderError("its header is cut off or no JSON object")
    entries = cast("dict[str, Any]", described)
    tensors = [_read_tensor(name, entries[name]) for name in entries if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise HeaderError(f"the bytes of {tensor.name[:200]!r} overlap others or leave a gap")
        end = tensor.end
    return Header(start + text, tuple(tensors))


def _read_tensor(name: str, about: Any) -> Tensor:
    try:
        dtype, shape, (begin, end) = about["dtype"], about["shape"], about["data_offsets"]
        numbers = [*shape, begin, end]
        is_valid = all(type(each) is int and each >= 0 for each in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise HeaderError(f"{name[:200]!r} is not described as a tensor") from error
    if not is_valid:
        raise HeaderError(f"{name[:200]!r} is not described as a tensor")
    item_bytes = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if item_bytes is None:
        types = ", ".join(ITEM_BYTES)
        raise HeaderError(f"{name[:200]!r} is of type {str(dtype)[:40]!r}, and not {types}")
    if end - begin != math.prod(shape) * item_bytes:
        raise HeaderError(f"the bytes of {name[:200]!r} do not match its shape")
    return Tensor(name, dtype, tuple(shape), begin, end)


def read_shapes(weights: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a base model's file. Empty if its header is not JSON."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        try:
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        except ValueError:
            return {}
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}
