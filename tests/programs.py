"""Programs that a few tests need and a bare machine may lack."""

import os
import shutil

import pytest


def require_programs(*names: str) -> None:
    """Skip the test, and say what to install, when one of these is not in PATH; in CI, fail."""
    missing = [name for name in names if shutil.which(name) is None]
    if not missing:
        return
    message = f"{', '.join(missing)} not found. On Debian or Ubuntu: apt-get install "
    message += " ".join(missing)
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
