"""Contains this process before it reads a file, a tokenizer and a chat template, all untrusted."""

import resource
import sys
from functools import partial
from pathlib import Path

from app.core.dataset.tokenizing.messages import MEMORY_BYTES, EstimateRequest, FileRequest
from worker.launch.sandbox.apply import SYSTEM
from worker.launch.sandbox.file_access import (
    READ,
    keeps_signals_inside,
    landlock_version,
    restrict_files,
)
from worker.launch.sandbox.grants import library_paths
from worker.launch.sandbox.privileges import give_up_privileges
from worker.launch.sandbox.system_calls import is_known_architecture, refuse_system_calls

_PROCESSES = "/proc"
_DEVICES = ("/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")


def contain(request: FileRequest) -> None:
    """Limit this process and take from it all that the request does not need. There is no way back.

    It needs neither a network nor a place to write, so of the layers of a training process those
    without privileges are enough.

    Raises:
        OSError: the sandbox is required, and this machine lacks a layer.
    """
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, request.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    if request.sandbox == "off" or sys.platform != "linux":
        return
    layers = (
        partial(give_up_privileges, None),
        partial(_restrict_files, request),
        _refuse_system_calls,
    )
    for layer in layers:
        try:
            layer()
        except OSError:
            if request.sandbox == "required":
                raise


def _restrict_files(request: FileRequest) -> None:
    if landlock_version() == 0:
        raise OSError("this kernel has no Landlock")
    readable = [
        *(Path(path) for path in SYSTEM if path != _PROCESSES),
        Path("/proc/self"),  # not what others' environments hold
        *map(Path, _DEVICES),
        *library_paths("worker.tokenizing", hidden=request.data_dir.resolve()),
        request.base_model.resolve(),
    ]
    if isinstance(request, EstimateRequest) and request.machine_cache.exists():
        readable.append(request.machine_cache.resolve())
    restrict_files((path, READ) for path in readable)


def _refuse_system_calls() -> None:
    if not is_known_architecture():
        raise OSError("the filter of system calls is not written for this processor")
    refuse_system_calls(limits_signals=not keeps_signals_inside())
