"""How this service starts modules of its own as processes, from a checkout and from a wheel.

They must not depend on the directory that a user happens to be in: it may well hold an `app` or a
`worker` of somebody else's.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The directory that holds `app` and `worker`."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module; it needs `with_import_path` in its environment."""
    return [sys.executable, "-P", "-m", module, *arguments]


def with_import_path(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment, in which Python finds this service's code first."""
    rest = environment.get("PYTHONPATH", "")
    paths = [path for path in rest.split(os.pathsep) if path and path != str(ROOT)]
    return {**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *paths])}
