"""Take a base model from a local directory."""

import shutil
from pathlib import Path

from worker.model_store.checks import find_weight_files, is_wanted
from worker.model_store.errors import InstallError


def copy_from_directory(source: Path, files_dir: Path) -> None:
    """Copy the files of a model. Other files in `source` are left out.

    Copied rather than linked: a program that saves into `source` again must not change the model
    that adapters were made from.

    Raises:
        InstallError: `source` is not the directory of a model.
    """
    if not source.is_dir():
        raise InstallError(f"{source} is not a directory. Correct `path` in base_models.toml.")
    names = {path.name for path in source.iterdir()}
    for name in sorted({name for name in names if is_wanted(name)}):
        _copy(source / name, files_dir)
    for name in find_weight_files(files_dir, names):
        _copy(source / name, files_dir)


def _copy(path: Path, files_dir: Path) -> None:
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InstallError(
            f"{path} is a link to outside of the directory. Give a directory that holds the files "
            f"themselves; `cp -rL {path.parent} COPY` makes one."
        )
    try:
        shutil.copyfile(path, files_dir / path.name)
    except OSError as error:
        raise InstallError(f"{path} cannot be copied: {error.strerror}.") from error
