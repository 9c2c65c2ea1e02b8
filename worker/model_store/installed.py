"""Checks a base model at the start of each job that uses it, in milliseconds."""

from pathlib import Path

from app.core.base_models import RECORD_NAME, InstalledModel
from app.core.manifest import sha256_of
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
    names = {path.name for path in directory.iterdir()} - {RECORD_NAME}
    if names != installed.files.keys():
        different = sorted(names ^ installed.files.keys())
        raise RefusedModelError(f"{different[0]} was added or removed after the installation.")
    for name, sha256 in installed.files.items():
        check_file(directory / name)
        if not is_weights(name) and sha256_of(directory / name) != sha256:
            raise RefusedModelError(f"{name} was changed after the installation.")
        if name in CONFIG_NAMES:
            check_config(directory / name)
