"""Commands that start this service's modules as processes, from a checkout or a wheel.

The commands do not depend on the current directory, which may have another `app` or `worker`.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""Directory that contains `app` and `worker`."""

_BOUNDED_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve address space
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "PATH": os.defpath,
}


def python_module(module: str, *arguments: str) -> list[str]:
    """Command that runs a module. Its environment must come from `with_import_path`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_import_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment so that Python finds this service's code first."""
    rest = environment.get("PYTHONPATH", "")
    paths = [path for path in rest.split(os.pathsep) if path and path != str(ROOT)]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *paths])}


def run_bounded(module: str, *arguments: str, wall_s: float) -> bytes | None:
    """Run a module that sets limits for itself and prints its answer.

    It gets no secret of this process: its environment is fixed, and it has no other descriptor.

    Args:
        module: the module.
        arguments: its arguments.
        wall_s: seconds after which it is killed.

    Returns:
        What it has printed. None unless it has ended well and in time.
    """
    environment = {**_BOUNDED_ENVIRONMENT, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    with subprocess.Popen(  # noqa: S603 - our own module
        python_module(module, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=with_import_path(environment),
        cwd="/",
    ) as process:
        try:
            answer, _ = process.communicate(timeout=wall_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    return answer if process.returncode == 0 else None
