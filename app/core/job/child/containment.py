"""The layers that contain a training process, as this machine and this user have them."""

import os
import subprocess
from collections.abc import Sequence
from enum import StrEnum
from functools import cache

from pydantic import BaseModel, TypeAdapter

from app.core.machine.subprocesses import python_module, with_import_path

_TRIAL_S = 60.0
"""Time limit for trying all layers, in seconds. It takes a fraction of a second."""


class LayerKind(StrEnum):
    PRIVILEGES = "privileges"
    """No capabilities, and no way to get any."""
    LIMITS = "limits"
    """Limits of memory, processes, open files and the size of a file."""
    SYSTEM_CALLS = "system_calls"
    """A seccomp filter."""
    FILES = "files"
    """Landlock."""
    NAMESPACES = "namespaces"
    """Own processes, network and mounts, and no others in sight."""
    USER = "user"
    """A user of its own, where the worker is root."""


CORE = (LayerKind.PRIVILEGES, LayerKind.LIMITS, LayerKind.SYSTEM_CALLS, LayerKind.FILES)
"""The layers that `TUNERY_SANDBOX=required` insists on. They need no privilege."""


class Layer(BaseModel):
    kind: LayerKind
    name: str
    missing: str
    """Why the layer is not available. Empty if it holds."""

    @property
    def is_core(self) -> bool:
        return self.kind in CORE

    def __str__(self) -> str:
        return f"{self.name} ({self.missing})" if self.missing else self.name


LAYERS = TypeAdapter(list[Layer])


def describe_layers(layers: Sequence[Layer]) -> str:
    """How a process is contained, as the end of a sentence."""
    held = ", ".join(str(layer) for layer in layers if not layer.missing)
    missing = ", ".join(str(layer) for layer in layers if layer.missing)
    return f"contained by {held or 'nothing'}" + (f"; not available: {missing}" if missing else "")


def missing_core_layers(layers: Sequence[Layer]) -> list[str]:
    """The core layers that do not hold, each with the reason."""
    return [str(layer) for layer in layers if layer.missing and layer.is_core]


@cache
def find_layers() -> tuple[Layer, ...]:
    """Try every layer on this machine, as this user. They are tried once in a process.

    Raises:
        OSError: they cannot be tried.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - our own module, which must have but one thread
            python_module("worker.launch.sandbox.probe"),
            env=with_import_path(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_TRIAL_S,
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"the containment of training processes cannot be tried: {error}") from error
    return tuple(LAYERS.validate_json(answer.stdout))
