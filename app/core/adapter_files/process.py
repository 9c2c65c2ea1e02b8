"""Runs the process that checks an archive, and believes no more of it than it must."""

from pathlib import Path

from pydantic import ValidationError

from app.core.adapter_files.archive import ImportRefusedError
from app.core.job.frozen import Frozen
from app.core.job.lora_shape import LoraShape
from app.core.machine.subprocesses import run_bounded

MEMORY_BYTES = 1024**3
"""Maximum address space of the process. It holds a megabyte of weights at once."""

CPU_S = 300
"""Maximum processor time of the process, in seconds. A gigabyte of weights takes ten."""

_WALL_S = 2.0 * CPU_S


class Import(Frozen):
    """What the process is asked to do. All paths are absolute."""

    archive: Path
    weights: Path
    """Where the weights are copied to. Nothing is there yet."""
    base_model: Path
    """Directory of the base model."""
    target_modules: tuple[str, ...]
    """Linear layers of the base model that an adapter may have."""
    max_rank: int
    """Highest rank for the base model."""
    max_bytes: int
    """Maximum size of the weights."""


class Answer(Frozen):
    """What was found: the shape of the adapter, or why it is refused."""

    shape: LoraShape | None = None
    refused: str | None = None


def check_in_process(request: Import, *, wall_s: float = _WALL_S) -> LoraShape:
    """Check an archive, and copy the weights out of it. Returns the shape of the adapter.

    Raises:
        ImportRefusedError: it cannot be imported.
    """
    module = "app.core.adapter_files.check"
    output = run_bounded(module, request.model_dump_json(), wall_s=wall_s)
    try:
        answer = Answer.model_validate_json(output or b"")
    except ValidationError:
        answer = Answer()
    if answer.shape is None:
        limits = f"{MEMORY_BYTES // 2**30} GiB of memory, {request.max_bytes:,} bytes of weights"
        otherwise = f"The archive could not be read with {limits} and {CPU_S} seconds."
        raise ImportRefusedError(answer.refused or otherwise)
    return answer.shape
