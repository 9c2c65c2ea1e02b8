"""The command `tunery`, and the package that a wheel installs.

In a checkout, `app`, `worker` and `migrations` lie beside this package. A wheel carries them in
`tunery/service`, which is on no import path but that of Tunery's own processes: see decision 0022.
"""

import sys
from pathlib import Path


def service_root() -> Path:
    """The directory that holds `app`, `worker`, `migrations` and `examples`."""
    package = Path(__file__).resolve().parent
    carried = package / "service"
    return carried if carried.is_dir() else package.parent


def make_importable() -> None:
    """Put the service's own packages in front of whatever else is called `app` or `worker`."""
    root = str(service_root())
    if sys.path[:1] != [root]:
        sys.path.insert(0, root)
