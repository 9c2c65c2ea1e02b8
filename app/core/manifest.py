"""`manifest.json`: the list of the files of a checkpoint or saved state, which shows any damage.

The training process writes it last, before it renames the directory. The worker verifies it before
it publishes anything.
"""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

MANIFEST_NAME = "manifest.json"


class ManifestFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Files of a checkpoint or saved state, and their provenance."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    """Size and sha256 of every regular file in `directory`, except for the manifest."""
    return {
        path.name: ManifestFile(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(directory.iterdir())
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST_NAME
    }


def verify(directory: Path) -> Manifest:
    """Read the manifest of `directory` and check every file against it.

    Raises:
        ManifestError: there is no readable manifest, or a file is missing, unexpected or changed.
    """
    manifest = read(directory)
    names = {path.name for path in directory.iterdir()} - {MANIFEST_NAME}
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
        return Manifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise ManifestError(f"{directory.name}: no readable {MANIFEST_NAME}: {error}") from error


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
