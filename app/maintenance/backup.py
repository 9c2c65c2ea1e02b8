"""Makes a backup while the service runs.

A snapshot of the database says which blobs there are. Each is given a second name at once, by a
hard link, so that it is of no consequence when it is deleted a moment later; then the snapshot is
written out, and what has to be copied is copied at leisure. A blob that was deleted before it got
its second name makes the snapshot worthless: the next one is tried, for which nearly all is done.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from app.core.base_models import CATALOGUE_NAME, RECORD_NAME, InstalledModel, load_catalogue
from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.blob_keys import NamedBlob, iterate_named
from app.core.db.migrate import read_revision
from app.core.db.session import Database
from app.core.db.snapshot import copy_database, open_snapshot
from app.core.durable import sync
from app.core.manifest import ManifestFile, sha256_of
from app.core.orphans import HOLD_PREFIX
from app.core.settings import Settings
from app.core.version import VERSION
from app.maintenance import backup_format
from app.maintenance.backup_format import (
    BackupError,
    BackupRecord,
    BlobLine,
    iterate_blobs,
    verify,
)
from app.maintenance.durable_files import (
    copy_file,
    link_or_copy,
    sync_directories,
    try_link,
    write_durably,
)

_TRIES = 100
"""Snapshots that are tried while blobs are deleted under the backup."""


def make_backup(
    settings: Settings,
    target: Path,
    *,
    may_link: bool = True,
    with_models: bool = False,
    reads_back: bool = False,
) -> BackupRecord:
    """Make the directory `target`, which appears under this name when it is whole.

    Args:
        may_link: give blobs on the same file system a second name there instead of a copy.
        with_models: the weights of the base models, too, and not only which they are.
        reads_back: read every byte of the backup and compare it with its sha256. What was copied
            is compared anyway, and what was linked is not.

    Raises:
        BackupError: `target` exists already, or blobs were deleted faster than they were copied.
        NoDatabaseError: there is nothing to copy.
        SnapshotError: the database could not be copied.
    """
    target = target.absolute()
    if target.exists():
        raise BackupError(f"{target} exists already.")
    if target.is_relative_to(settings.blobs_dir.absolute()):
        raise BackupError(f"{target} is among the service's own files.")
    database = Database(settings.resolved_database_url)
    inspection.require_database(database)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    unfinished.mkdir(mode=0o700)  # data sets and adapters are not everybody's
    hold = settings.data_dir / f"{HOLD_PREFIX}{secrets.token_hex(4)}"
    try:
        backup = _Backup(settings, database, unfinished, hold, may_link=may_link)
        record = backup.make(with_models=with_models)
        if reads_back:
            verify(unfinished)
        unfinished.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(hold, ignore_errors=True)
        database.dispose()
    return record


class _Backup:
    """One backup, on its way into `directory`."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        directory: Path,
        hold: Path,
        *,
        may_link: bool,
    ) -> None:
        self._settings = settings
        self._database = database
        self._directory = directory
        self._hold = hold
        self._may_link = may_link
        self._files: dict[str, ManifestFile] = {}
        self._revision = ""

    def make(self, *, with_models: bool) -> BackupRecord:
        created_at = utc_now()
        missing = self._take_rows_and_blobs()
        missing |= self._copy_held()
        for name in (
            backup_format.DATABASE_NAMES[self._database.backend.kind],
            backup_format.BLOB_LIST_NAME,
        ):
            self._note(name)
        self._take_catalogue(with_models=with_models)
        sizes = [blob.bytes for blob in iterate_blobs(self._directory) if blob.key not in missing]
        record = BackupRecord(
            service_version=VERSION,
            created_at=created_at,
            database=self._database.backend.kind,
            revision=self._revision,
            files=self._files,
            blob_count=len(sizes),
            blob_bytes=sum(sizes),
            missing=sorted(missing),
        )
        content = record.model_dump_json(indent=2).encode() + b"\n"
        write_durably(self._directory / backup_format.RECORD_NAME, content)
        sync_directories(self._directory)
        return record

    def _take_rows_and_blobs(self) -> set[str]:
        """Returns the keys of the blobs that the service has lost, or has in another size.

        A blob that two snapshots name, and that is missing both times, was not deleted in between.
        """
        self._take_blobs(iterate_named(self._database.reading))  # most, with no snapshot to hold up
        missing: set[str] = set()
        for _ in range(_TRIES):
            with open_snapshot(self._database) as session:
                missing_before = missing
                missing = self._take_blobs(iterate_named(partial(nullcontext, session)))
                if missing <= missing_before:
                    self._revision = read_revision(session) or ""
                    name = backup_format.DATABASE_NAMES[self._database.backend.kind]
                    copy_database(self._database, session, self._directory / name)
                    return missing
        raise BackupError(
            f"Blobs were deleted faster than they could be taken, {_TRIES} times in a row. "
            "Try again when fewer files are deleted."
        )

    def _take_blobs(self, blobs: Iterator[NamedBlob]) -> set[str]:
        """Write the list of blobs, and keep them. Returns the keys of those that are not whole."""
        missing: set[str] = set()
        with (self._directory / backup_format.BLOB_LIST_NAME).open("wb") as lines:
            for blob in blobs:
                if not self._keep(blob):
                    missing.add(blob.key)
                line = BlobLine(key=blob.key, bytes=blob.bytes, sha256=blob.sha256)
                lines.write(line.model_dump_json().encode() + b"\n")
        sync(self._directory / backup_format.BLOB_LIST_NAME)
        return missing

    def _keep(self, blob: NamedBlob) -> bool:
        """Take a blob, or see to it that it can be taken later; whether it is there, and whole."""
        target = backup_format.path_in(self._directory / backup_format.BLOBS_NAME, blob.key)
        held = self._hold / blob.key
        if target.exists() or held.exists():
            return True  # since an earlier try
        source = self._settings.blobs_dir / blob.key
        try:
            if source.stat().st_size != blob.bytes:
                return False
            if not (self._may_link and try_link(source, target)) and not try_link(source, held):
                copy_file(source, target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _copy_held(self) -> set[str]:
        """Returns the keys of the blobs that are not as they were written."""
        damaged: set[str] = set()
        for blob in iterate_blobs(self._directory):
            target = self._directory / backup_format.BLOBS_NAME / blob.key
            held = self._hold / blob.key
            if held.exists():
                copy_file(held, target)
                held.unlink()
            # With a second name it is the service's own file still, and not a copy of it.
            is_copy = target.exists() and target.stat().st_nlink == 1
            if is_copy and sha256_of(target) != blob.sha256:
                target.unlink()
                damaged.add(blob.key)
        return damaged

    def _take_catalogue(self, *, with_models: bool) -> None:
        data_dir = self._settings.data_dir
        if (data_dir / CATALOGUE_NAME).exists():
            self._take(data_dir / CATALOGUE_NAME, CATALOGUE_NAME, may_link=False)
        catalogue = load_catalogue(data_dir)
        for entry in catalogue.entries:
            installed = catalogue.find_installed(entry.id)
            if installed is not None:
                self._take_model(catalogue.directory(entry.id), installed, weights=with_models)

    def _take_model(self, directory: Path, installed: InstalledModel, *, weights: bool) -> None:
        self._take(directory / RECORD_NAME, f"models/{installed.id}/{RECORD_NAME}", may_link=False)
        for name, sha256 in installed.files.items() if weights else ():
            path = f"models/{installed.id}/{name}"
            self._take((directory / name).resolve(), path, may_link=self._may_link)
            if self._files[path].sha256 != sha256:
                raise BackupError(
                    f"{directory / name} is not the file that was installed. Install the base "
                    f"model {installed.id} again, or make the backup without --with-models."
                )

    def _take(self, source: Path, name: str, *, may_link: bool) -> None:
        link_or_copy(source, self._directory / name, may_link=may_link)
        self._note(name)

    def _note(self, name: str) -> None:
        path = self._directory / name
        self._files[name] = ManifestFile(bytes=path.stat().st_size, sha256=sha256_of(path))
