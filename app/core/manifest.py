"""`manifest.json`: the list of the files of a checkpoint or saved state, which shows any damage.

The training process writes it last, before it renames the directory. The worker verifies it before
it publishes anything, and signs that of a checkpoint: see `worker/attempt/publisher.py`.
"""

import hashlib
import platform
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.core.job.artifacts import MANIFEST_NAME
from app.core.job.child.job_spec import JobSpec
from app.core.job.frozen import Frozen
from app.core.machine import durable
from app.core.version import VERSION

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")
SIGNATURE_NAME = "manifest.json.sig"
"""Signature of the manifest. The worker adds it, so no manifest lists it."""

UNLISTED_NAMES = frozenset({MANIFEST_NAME, SIGNATURE_NAME})

MAX_BYTES = 256 * 1024
"""Largest manifest that is read. Usually it has a few thousand bytes."""


class ManifestFile(Frozen):
    bytes: int
    sha256: str


class Manifest(Frozen):
    """Files of a checkpoint or saved state, and their provenance."""

    job_id: str
    attempt: int
    step: int
    files: dict[str, ManifestFile]
    """Files by name, without the manifest itself."""
    provenance: dict[str, Any]
    """Base model and datasets with their sha256, hyperparameters, seed and library versions."""


class ManifestError(Exception):
    """A directory does not match its manifest. The message names the first difference."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def describe_files(directory: Path) -> dict[str, ManifestFile]:
    """Size and sha256 of every regular file in `directory` but the manifest and its signature."""
    return {
        path.name: ManifestFile(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and not path.is_symlink() and path.name not in UNLISTED_NAMES
    }


def verify(directory: Path) -> Manifest:
    """Read the manifest of `directory` and check every file against it.

    Raises:
        ManifestError: there is no readable manifest, or a file is missing, unexpected or changed.
    """
    manifest = read(directory)
    names = {path.name for path in directory.iterdir()} - UNLISTED_NAMES
    files = describe_files(directory)
    if names != files.keys():
        raise ManifestError(f"not regular files: {sorted(names - files.keys())}")
    check(manifest, files)
    return manifest


def read(directory: Path) -> Manifest:
    """Read the manifest of `directory` without checking its files.

    Raises:
        ManifestError: there is no readable manifest.
    """
    try:
        return parse((directory / MANIFEST_NAME).read_bytes())
    except (OSError, ManifestError) as error:
        raise ManifestError(f"{directory.name}: no readable {MANIFEST_NAME}") from error


def parse(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: it is not one. The message does not quote the content, which may be any
            file of the machine.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValueError as error:
        raise ManifestError("its manifest cannot be read") from error


def check(manifest: Manifest, files: dict[str, ManifestFile]) -> None:
    """Compare the files of a directory with its manifest.

    Raises:
        ManifestError: a file is missing, unexpected or changed.
    """
    if files.keys() != manifest.files.keys():
        difference = sorted(files.keys() ^ manifest.files.keys())
        raise ManifestError(f"step {manifest.step}: missing or unexpected files: {difference}")
    for name, expected in manifest.files.items():
        if files[name] != expected:
            raise ManifestError(f"step {manifest.step}: {name} is not the file that was written")


@contextmanager
def atomic_directory(target: Path, step: int, spec: JobSpec) -> Generator[Path]:
    """Publish what the `with` block writes into an empty directory as `target`, with a manifest.

    A power cut at any moment leaves either the whole directory or nothing under that name: every
    file is on the disk before the manifest that lists it, and the directory before its name. An
    error removes the unfinished directory, so that it does not fill the disk.
    """
    staging = target.with_name(f".tmp-{target.name}")
    durable.make_directory(target.parent)
    staging.mkdir()
    try:
        yield staging
        _write_manifest(staging, step, spec)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    durable.sync(target.parent)


def _write_manifest(directory: Path, step: int, spec: JobSpec) -> None:
    for path in directory.iterdir():
        durable.sync(path)
    manifest = Manifest(
        job_id=spec.job_id,
        attempt=spec.attempt,
        step=step,
        files=describe_files(directory),
        provenance=describe_inputs(spec) | _describe_computation(spec),
    )
    path = directory / MANIFEST_NAME
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    durable.sync(path)
    durable.sync(directory)


def describe_inputs(spec: JobSpec) -> dict[str, Any]:
    """What the service has given to the training: model, data and hyperparameters."""
    return {
        "fine_tuned_model": spec.fine_tuned_model,
        "base_model": spec.base_model.model_dump(mode="json"),
        "parent": spec.parent and spec.parent.model_dump(mode="json"),
        "training_file": spec.training_file.model_dump(mode="json"),
        "validation_file": spec.validation_file and spec.validation_file.model_dump(mode="json"),
        "config": spec.config.model_dump(mode="json"),
        "seed": spec.config.seed,
    }


def check_inputs(manifest: Manifest, spec: JobSpec) -> None:
    """Check that a manifest names the inputs that the service has given to the training.

    Raises:
        ManifestError: it names another; the message says which.
    """
    for name, given in describe_inputs(spec).items():
        if manifest.provenance.get(name) != given:
            raise ManifestError(f"step {manifest.step}: the manifest has another {name}")


def _describe_computation(spec: JobSpec) -> dict[str, Any]:
    """How the training process has computed, and with what software."""
    return {
        "compute": spec.compute.model_dump(mode="json"),
        "threads": spec.threads,
        "libraries": {"tunery": VERSION} | {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
