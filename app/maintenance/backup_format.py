"""The files in the directory of a backup.

`backup.json`             the record of the backup, which is written last
`tunery.db`               the SQLite database, or `database.dump`, the dump of PostgreSQL
`blobs.jsonl`             key, size and sha256 of every blob that the database names
`blobs/KEY`               the bytes of each blob
`base_models.toml`        the operator's own catalogue, if there is one
`signing/*.pem`           the key that signs manifests, and the public keys before it
`models/ID/tunery.json`   the record of an installed base model; with `--with-models`, its weights
                          are beside it
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from app.core.errors import OperatorError
from app.core.manifest import ManifestFile, sha256_of
from app.core.signing.keys import KEY_FILES

RECORD_NAME = "backup.json"
BLOB_LIST_NAME = "blobs.jsonl"
BLOBS_NAME = "blobs"
SIGNING_FILES = {f"signing/{name}": name for name in KEY_FILES}
"""Files of the signing keys: the path in the backup, and the name in the service's directory."""
DATABASE_NAMES = {"sqlite": "tunery.db", "postgresql": "database.dump"}


class BackupError(OperatorError):
    """A backup cannot be made or used; the message says why."""


class BlobLine(BaseModel):
    """A line of `blobs.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    bytes: int
    sha256: str


class BackupRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    service_version: str
    created_at: datetime
    """Time of the backup. It contains everything acknowledged before."""
    database: Literal["sqlite", "postgresql"]
    revision: str
    """Revision of the database's schema."""
    files: dict[str, ManifestFile]
    """Every file of the backup by its path, without the blobs and this record."""
    blob_count: int
    blob_bytes: int
    missing: list[str]
    """Keys of blobs that the service itself had already lost, wholly or in part."""

    @property
    def database_name(self) -> str:
        return DATABASE_NAMES[self.database]


def read_record(directory: Path) -> BackupRecord:
    """The record of a backup. Nothing else of the backup is checked.

    Raises:
        BackupError: there is no readable record.
    """
    path = directory / RECORD_NAME
    try:
        return BackupRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BackupError(f"{directory} is not a backup: it has no {RECORD_NAME}.") from error
    except (OSError, ValidationError) as error:
        raise BackupError(f"{path} cannot be read: {error}") from error


def iterate_blobs(directory: Path) -> Iterator[BlobLine]:
    """The blobs of a backup or of one that is being made."""
    with (directory / BLOB_LIST_NAME).open("rb") as lines:
        for line in lines:
            yield BlobLine.model_validate_json(line)


def verify(directory: Path, *, accept_damage: bool = False) -> set[str]:
    """Read every byte of a backup, and compare it with what was written.

    Args:
        accept_damage: return damaged blobs instead of refusing them. A damaged database is always
            refused.

    Returns:
        The keys of blobs that are missing or changed.

    Raises:
        BackupError: a file is missing or changed; the message names the first.
    """
    record = read_record(directory)
    for name, promised in record.files.items():
        _verify_file(directory, name, promised)
    damaged = set(record.missing)
    for blob in iterate_blobs(directory):
        if blob.key in damaged:
            continue
        promised = ManifestFile(bytes=blob.bytes, sha256=blob.sha256)
        try:
            _verify_file(directory / BLOBS_NAME, blob.key, promised)
        except BackupError:
            if not accept_damage:
                raise
            damaged.add(blob.key)
    return damaged


def path_in(directory: Path, name: str) -> Path:
    """The path of a file of the backup.

    Raises:
        BackupError: the name leads out of the directory.
    """
    path = directory / name
    if not path.is_relative_to(directory) or ".." in path.parts:
        raise BackupError(f"{name!r} leads out of the backup.")
    return path


def _verify_file(directory: Path, name: str, promised: ManifestFile) -> None:
    path = path_in(directory, name)
    try:
        actual = ManifestFile(bytes=path.stat().st_size, sha256=sha256_of(path))
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.") from error
    if actual != promised:
        raise BackupError(f"{path} is not the file that was written.")
