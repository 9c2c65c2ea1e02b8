"""Makes a backup while the service runs.

A snapshot of the database lists the blobs to back up. Each blob gets a second name at once, by a
hard link, so that its bytes stay even if the service deletes it a moment later. Then the backup
copies the database, and at last the blobs that need a copy. If a blob was deleted before it got its
second name, the snapshot is useless and the backup tries another one. That is quick, because nearly
all blobs have their second name by then. A blob of a store without files here is copied at once.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader
from pathlib import Path

from app.core.base_models import CATALOGUE_NAME, RECORD_NAME, InstalledModel, load_catalogue
from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.blob_keys import NamedBlob, iterate_named
from app.core.db.migrate import read_revision
from app.core.db.session import Database, Session
from app.core.db.snapshot import copy_database, open_snapshot
from app.core.errors import BlobNotFoundError
from app.core.installation import open_own_store
from app.core.machine.durable import (
    copy_file,
    copy_stream,
    link_or_copy,
    sync,
    sync_directories,
    try_link,
    write_durably,
)
from app.core.manifest import ManifestFile, sha256_of
from app.core.orphans import HOLD_PREFIX
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.local_copies import has_descriptor
from app.core.version import VERSION
from app.maintenance import backup_format
from app.maintenance.backup_format import (
    BackupError,
    BackupRecord,
    BlobLine,
    iterate_blobs,
    verify,
)

_TRIES = 100
"""Maximum number of snapshots that a backup tries while the service deletes blobs."""


def make_backup(
    settings: Settings,
    target: Path,
    *,
    may_link: bool = True,
    with_models: bool = False,
    reads_back: bool = False,
    open_snapshot: Callable[[Database], AbstractContextManager[Session]] = open_snapshot,
    tries: int = _TRIES,
) -> BackupRecord:
    """Make a backup in the new directory `target`, which exists only once the backup is complete.

    Args:
        may_link: use a hard link instead of a copy for blobs on the same file system.
        with_models: include the weights of the base models. Without it, the backup only records
            which base models are installed.
        reads_back: read every byte of the backup and compare it with its sha256. Copies are always
            compared, and links only with this.
        open_snapshot: opens a session that sees one state of the database.
        tries: maximum number of snapshots.

    Raises:
        BackupError: `target` already exists, or blobs were deleted faster than they were copied.
        NoDatabaseError: there is nothing to copy.
        SnapshotError: the database could not be copied.
        WrongStoreError: the settings name another store than the service's.
        StoreAwayError: a store does not answer.
    """
    target = target.absolute()
    if target.exists():
        raise BackupError(f"{target} exists already. Name a new directory.")
    if target.is_relative_to(settings.blobs_dir.absolute()):
        raise BackupError(f"{target} is among the service's own files. Name another directory.")
    database = Database(settings.resolved_database_url)
    inspection.require_database(database)
    store = open_own_store(settings, database)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    unfinished.mkdir(mode=0o700)  # other users must not read datasets and adapters
    hold = settings.data_dir / f"{HOLD_PREFIX}{secrets.token_hex(4)}"
    try:
        backup = _Backup(
            settings, database, store, unfinished, hold, may_link, open_snapshot, tries
        )
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


@dataclass
class _Backup:
    """One backup while it is being made in `directory`."""

    settings: Settings
    database: Database
    store: BlobStore
    directory: Path
    hold: Path
    """Directory for hard links to the blobs that must be copied."""
    may_link: bool
    open_snapshot: Callable[[Database], AbstractContextManager[Session]]
    tries: int
    files: dict[str, ManifestFile] = field(default_factory=dict[str, ManifestFile])
    revision: str = ""

    def make(self, *, with_models: bool) -> BackupRecord:
        created_at = utc_now()
        missing = self._take_rows_and_blobs() | self._copy_held()
        self._note(backup_format.DATABASE_NAMES[self.database.backend.kind])
        self._note(backup_format.BLOB_LIST_NAME)
        self._take_signing_keys()
        self._take_catalogue(with_models=with_models)
        sizes = [blob.bytes for blob in iterate_blobs(self.directory) if blob.key not in missing]
        record = BackupRecord(
            service_version=VERSION,
            created_at=created_at,
            database=self.database.backend.kind,
            revision=self.revision,
            files=self.files,
            blob_count=len(sizes),
            blob_bytes=sum(sizes),
            missing=sorted(missing),
        )
        content = record.model_dump_json(indent=2).encode() + b"\n"
        write_durably(self.directory / backup_format.RECORD_NAME, content)
        sync_directories(self.directory)
        return record

    def _take_rows_and_blobs(self) -> set[str]:
        """Copy the database, and link or copy the blobs that it names.

        Returns:
            The keys of blobs that the service has lost, or has in another size. Two snapshots in
            a row name them and both times they are missing, so they were not just deleted.
        """
        self._take_blobs(iterate_named(self.database.reading))  # most of them, before any snapshot
        missing: set[str] = set()
        for _ in range(self.tries):
            with self.open_snapshot(self.database) as session:
                missing_before = missing
                missing = self._take_blobs(iterate_named(partial(nullcontext, session)))
                if missing <= missing_before:
                    self.revision = read_revision(session) or ""
                    name = backup_format.DATABASE_NAMES[self.database.backend.kind]
                    copy_database(self.database, session, self.directory / name)
                    return missing
        raise BackupError(
            f"Blobs were deleted faster than they could be backed up, {self.tries} times in a row. "
            "Try again when fewer files are deleted."
        )

    def _take_blobs(self, blobs: Iterator[NamedBlob]) -> set[str]:
        """Write the list of blobs, and keep each blob. Returns the keys of incomplete blobs."""
        missing: set[str] = set()
        with (self.directory / backup_format.BLOB_LIST_NAME).open("wb") as lines:
            for blob in blobs:
                if not self._keep(blob):
                    missing.add(blob.key)
                line = BlobLine(key=blob.key, bytes=blob.bytes, sha256=blob.sha256)
                lines.write(line.model_dump_json().encode() + b"\n")
        sync(self.directory / backup_format.BLOB_LIST_NAME)
        return missing

    def _keep(self, blob: NamedBlob) -> bool:
        """Link or copy a blob, or hold it to be copied later. False if it is not complete."""
        target = backup_format.path_in(self.directory / backup_format.BLOBS_NAME, blob.key)
        held = self.hold / blob.key
        if target.exists() or held.exists():
            return True  # an earlier try has done it
        try:
            with self.store.open(blob.key) as source:
                if source.seek(0, os.SEEK_END) != blob.bytes:
                    return False
                source.seek(0)
                self._keep_opened(source, target, held)
        except (BlobNotFoundError, FileNotFoundError):  # just deleted, perhaps while it was copied
            target.unlink(missing_ok=True)
            return False
        return True

    def _keep_opened(self, source: BufferedReader, target: Path, held: Path) -> None:
        if not has_descriptor(source):
            copy_stream(source, target)
            return
        path = Path(source.name)
        if not (self.may_link and try_link(path, target)) and not try_link(path, held):
            copy_file(path, target)

    def _copy_held(self) -> set[str]:
        """Copy the blobs that are held. Returns the keys of blobs with other bytes than written."""
        damaged: set[str] = set()
        for blob in iterate_blobs(self.directory):
            target = self.directory / backup_format.BLOBS_NAME / blob.key
            held = self.hold / blob.key
            if held.exists():
                copy_file(held, target)
                held.unlink()
            # A file with two names is a link to the service's own file, not a copy.
            is_copy = target.exists() and target.stat().st_nlink == 1
            if is_copy and sha256_of(target) != blob.sha256:
                target.unlink()
                damaged.add(blob.key)
        return damaged

    def _take_signing_keys(self) -> None:
        for path, name in backup_format.SIGNING_FILES.items():
            source = self.settings.signing_dir / name
            if source.exists():
                self._take(source, path, may_link=False)

    def _take_catalogue(self, *, with_models: bool) -> None:
        data_dir = self.settings.data_dir
        if (data_dir / CATALOGUE_NAME).exists():
            self._take(data_dir / CATALOGUE_NAME, CATALOGUE_NAME, may_link=False)
        catalogue = load_catalogue(data_dir)
        for entry, installed in catalogue.list_installed():
            self._take_model(catalogue.directory(entry.id), installed, weights=with_models)

    def _take_model(self, directory: Path, installed: InstalledModel, *, weights: bool) -> None:
        self._take(directory / RECORD_NAME, f"models/{installed.id}/{RECORD_NAME}", may_link=False)
        for name, sha256 in installed.files.items() if weights else ():
            path = f"models/{installed.id}/{name}"
            self._take((directory / name).resolve(), path, may_link=self.may_link)
            if self.files[path].sha256 != sha256:
                raise BackupError(
                    f"{directory / name} is not the file that was installed. Install the base "
                    f"model {installed.id} again, or make the backup without --with-models."
                )

    def _take(self, source: Path, name: str, *, may_link: bool) -> None:
        link_or_copy(source, self.directory / name, may_link=may_link)
        self._note(name)

    def _note(self, name: str) -> None:
        path = self.directory / name
        self.files[name] = ManifestFile(bytes=path.stat().st_size, sha256=sha256_of(path))
