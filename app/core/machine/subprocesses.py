"""Commands that start this service's modules as processes, from a checkout or a wheel.

The commands do not depend on the current directory, which may have another `app` or `worker`.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""Directory that contains `app` and `worker`."""


def python_module(module: str, *arguments: str) -> list[str]:
    """Command that runs a module. Its environment must come from `with_import_path`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_import_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Copy an environment so that Python finds this service's code first."""
    rest = environment.get("PYTHONPATH", "")
    paths = [path for path in rest.split(os.pathsep) if path and path != str(ROOT)]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *paths])}
