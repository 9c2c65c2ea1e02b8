"""Programs that a few tests need and a bare machine may lack."""

import os
import shutil
from typing import NoReturn

import pytest


def require_programs(*names: str, packages: str = "") -> None:
    """Skip the test, and say what to install, when one of these is not in PATH; in CI, fail.

    Args:
        packages: Debian's, if their names are not those of the programs.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} not found. On Debian or Ubuntu: apt-get install "
    message += packages or " ".join(missing)
    skip_unless_ci(message)


def skip_unless_ci(message: str) -> NoReturn:
    """Skip the test and say what to install; in CI, where everything must be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
