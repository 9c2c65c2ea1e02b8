"""`python -m worker.launch.sandbox.probe`: try each layer of the sandbox, and print what holds.

Each is tried in a process of its own, for real: what a kernel was built with does not say what a
container forbids. The output is a list of `Layer` in JSON.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.core.job.child.containment import LAYERS, Layer, LayerKind
from worker.launch.sandbox.confinement import Limits
from worker.launch.sandbox.file_access import READ, landlock_version, restrict_files
from worker.launch.sandbox.limits import limit_resources
from worker.launch.sandbox.namespaces import enter_namespaces
from worker.launch.sandbox.privileges import give_up_privileges
from worker.launch.sandbox.system_calls import is_known_architecture, refuse_system_calls
from worker.launch.sandbox.view import hide_all_but

FIRST_USER = 60_578
"""First of the users for training processes of a worker that is root. Nobody assigns them: see
<https://systemd.io/UIDS-GIDS/>. They are below 65,536, because containers often have no others."""

_HELD = "it holds"


def _probe() -> list[Layer]:
    trials: list[tuple[LayerKind, str, Callable[[], None]]] = [
        (LayerKind.PRIVILEGES, "dropped privileges", lambda: give_up_privileges(None)),
        (LayerKind.LIMITS, "resource limits", _try_limits),
        (LayerKind.SYSTEM_CALLS, "a filter of system calls", _try_filter),
        (LayerKind.FILES, f"rules of file access (Landlock {landlock_version()})", _try_landlock),
        (LayerKind.NAMESPACES, "namespaces of processes, network and mounts", _try_namespaces),
        (LayerKind.USER, "a user of its own", _try_user),
    ]
    return [Layer(kind=kind, name=name, missing=_try(trial)) for kind, name, trial in trials]


def _try_limits() -> None:
    limit_resources(Limits(processes=4096, memory_bytes=1024**3))


def _try_filter() -> None:
    if not is_known_architecture():
        raise OSError("it is written for x86_64 and aarch64")
    give_up_privileges(None)
    refuse_system_calls(limits_signals=False)
    try:
        socket.socket()
    except PermissionError:
        return
    raise OSError("the kernel ignores it")


def _try_landlock() -> None:
    if landlock_version() == 0:
        raise OSError("the kernel does not have it, or has it switched off")
    give_up_privileges(None)
    restrict_files([(Path("/usr"), READ)])
    try:
        next(Path("/").iterdir())
    except PermissionError:
        return
    raise OSError("the kernel ignores it")


def _try_namespaces() -> None:
    enter_namespaces()
    hide_all_but([], Path(tempfile.gettempdir()), from_others=False)


def _try_user() -> None:
    if os.geteuid() != 0:
        raise OSError("only root can become another user")
    _try_namespaces()  # their mounts open the way to what other users may not enter
    give_up_privileges(FIRST_USER)


def _try(trial: Callable[[], None]) -> str:
    """Returns why it failed, or nothing."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        answer = _HELD
        try:
            trial()
        except OSError as error:
            answer = error.strerror or str(error)
        except Exception as error:  # on other systems than Linux
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answers:
        answer = answers.read() or "the trial died"
    os.wait()
    return "" if answer == _HELD else answer


if __name__ == "__main__":
    sys.stdout.write(LAYERS.dump_json(_probe()).decode())
