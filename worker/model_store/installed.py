"""Checks a base model at the start of each job that uses it, in milliseconds."""

from pathlib import Path

from app.core.base_models import InstalledModel, find_change
from worker.model_store.configs import CONFIG_NAMES, check_config
from worker.model_store.errors import RefusedModelError
from worker.model_store.files import check_file, is_weights


def check_installed(directory: Path, installed: InstalledModel) -> None:
    """Check that an installed model is still as installed and may still be used.

    The weights are not read. They are only data, and `tunery doctor --deep` compares them.

    Raises:
        RefusedModelError: a file was added, removed or changed, or is one that this version of the
            service does not install.
    """
    change = find_change(directory, installed, is_compared=lambda name: not is_weights(name))
    if change is not None:
        raise RefusedModelError(f"{change} after the installation.")
    for name in installed.files:
        check_file(directory / name)
        if name in CONFIG_NAMES:
            check_config(directory / name)
