"""Restores a backup: verifies it, prepares its files beside the old ones, then replaces those."""

import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from app.core.base_models import CATALOGUE_NAME, MODELS_NAME, RECORD_NAME
from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.blob_keys import InstallationRepository
from app.core.db.migrate import is_known_revision, upgrade
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.session import Database, kind_of
from app.core.db.snapshot import release_running
from app.core.machine.durable import link_or_copy, make_directory, replace_privately, sync
from app.core.occupancy import alone
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore
from app.core.storage.marker import MARKER_KEY, read_marker
from app.core.storage.opening import open_store
from app.maintenance import backup_format
from app.maintenance.backup_format import (
    BackupError,
    BackupRecord,
    iterate_blobs,
    path_in,
    read_record,
    verify,
)

_SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""Endings of the files that SQLite keeps for one database. They belong together."""


@dataclass
class Restored:
    """What was restored."""

    record: BackupRecord
    damaged: set[str]
    """Keys of blobs that are missing or changed in the backup."""
    put_back: list[str] = field(default_factory=list[str])
    """Ids of jobs that ran when the backup was made, and now wait for a worker."""
    working_keys: int = 0
    """Number of API keys that work now, even if they were revoked after the backup."""
    models_to_install: list[str] = field(default_factory=list[str])
    """Ids of base models whose weights are not in the backup."""
    replaced: Path | None = None
    """Directory that holds what was in the data directory before."""


def restore_backup(
    settings: Settings,
    source: Path,
    *,
    replace: bool = False,
    may_link: bool = True,
    accept_damage: bool = False,
) -> Restored:
    """Replace the data directory and the database with the backup in `source`.

    Args:
        replace: move the present data aside, and overwrite a PostgreSQL database. Without it, the
            data directory must be empty. A store outside it must have no other blobs in any case.
        may_link: use a hard link instead of a copy for blobs on the same file system.
        accept_damage: leave out damaged blobs instead of refusing the backup.

    Raises:
        BackupError: the backup is damaged, is of another kind of database or of a newer version, or
            the data directory is not empty.
        OccupiedError: the service is running.
        SnapshotError: PostgreSQL could not load the dump.
    """
    source = source.absolute()
    record = read_record(source)
    _check_fit(record, settings)
    restored = Restored(record, verify(source, accept_damage=accept_damage))
    with alone(settings):
        database = Database(settings.resolved_database_url)
        try:
            if not replace:
                _require_empty(settings, database)
            if settings.store_previous_url:
                raise BackupError(
                    "Unset TUNERY_STORE_PREVIOUS_URL: a backup is restored into one store."
                )
            if settings.store_url:
                _require_own_blobs(settings, source)
            _Restore(settings, source, restored, utc_now(), may_link=may_link).run(database)
        finally:
            database.dispose()
    return restored


def _check_fit(record: BackupRecord, settings: Settings) -> None:
    kind = kind_of(settings.resolved_database_url)
    if record.database != kind:
        raise BackupError(
            f"The backup contains a {record.database} database, and TUNERY_DATABASE_URL names a "
            f"{kind} database."
        )
    if not is_known_revision(record.revision):
        raise BackupError(
            f"The backup was made by version {record.service_version} of the service, whose schema "
            f"{record.revision} this version does not know. Restore it with that version or newer."
        )


def _require_empty(settings: Settings, database: Database) -> None:
    file = database.backend.file
    has_rows = file.exists() if file is not None else inspection.has_tables(database)
    if has_rows or (not settings.store_url and _has_blobs(settings)):
        raise BackupError(
            f"{settings.data_dir} already holds a database or blobs. Use an empty data directory, "
            "or --force, which moves the present content aside."
        )


def _require_own_blobs(settings: Settings, source: Path) -> None:
    """Refuse a store with other blobs, which would be orphans, and be deleted as such.

    It may have some of the backup's own: a restore that was interrupted is then continued.
    """
    store = open_store(settings)
    if read_marker(store) is not None:
        raise BackupError(
            f"{settings.store_url} belongs to an installation, whose files would be deleted as "
            "orphans. Name an empty store in TUNERY_STORE_URL, such as another prefix. If that "
            f"installation is gone for good, you can delete {MARKER_KEY} there instead."
        )
    own: set[str] = set()
    for blob in store.list_all():
        own = own or {line.key for line in iterate_blobs(source)}
        if blob.key not in own:
            raise BackupError(
                f"{settings.store_url} holds files that are not in the backup, such as {blob.key}. "
                "Name another prefix in TUNERY_STORE_URL, or delete them."
            )


def _has_blobs(settings: Settings) -> bool:
    return next(LocalBlobStore(settings.blobs_dir).list_all(), None) is not None


@dataclass
class _Restore:
    """One restore into the data directory of `settings`."""

    settings: Settings
    source: Path
    restored: Restored
    now: datetime
    may_link: bool

    def __post_init__(self) -> None:
        self._data_dir = self.settings.data_dir
        self._replaced = self._data_dir / f"before-restore-{self.now:%Y%m%dT%H%M%S%f}"

    def run(self, database: Database) -> None:
        if self.settings.store_url:
            self._copy_blobs(open_store(self.settings))
            self._restore_database(database)
        else:
            self._replace_blobs_and_database(database)
        self._restore_signing_keys()
        if CATALOGUE_NAME in self.restored.record.files:
            catalogue = self._data_dir / CATALOGUE_NAME
            self._move_aside(catalogue)
            link_or_copy(self.source / CATALOGUE_NAME, catalogue, may_link=False)
        self._restore_models()
        sync(self._data_dir)
        self.restored.replaced = self._replaced if self._replaced.exists() else None

    def _replace_blobs_and_database(self, database: Database) -> None:
        blobs = self._data_dir / "blobs.restoring"
        shutil.rmtree(blobs, ignore_errors=True)  # from an interrupted restore
        self._copy_blobs(LocalBlobStore(blobs))
        self._restore_database(database)
        if _has_blobs(self.settings):
            self._move_aside(self.settings.blobs_dir)
        shutil.rmtree(self.settings.blobs_dir, ignore_errors=True)
        blobs.rename(self.settings.blobs_dir)

    def _copy_blobs(self, store: BlobStore) -> None:
        for blob in iterate_blobs(self.source):
            if blob.key not in self.restored.damaged:
                scratch = store.scratch_file()
                original = path_in(self.source / backup_format.BLOBS_NAME, blob.key)
                link_or_copy(original, scratch, may_link=self.may_link)
                store.put(blob.key, scratch)

    def _restore_database(self, database: Database) -> None:
        dump = self.source / self.restored.record.database_name
        file = database.backend.file
        if file is None:
            database.backend.load_dump(dump, replace=inspection.has_tables(database))
            self._bring_up_to_date(database)
            return
        fresh = file.with_name(f"{file.name}.restoring")
        self._prepare_sqlite(dump, fresh)
        for end in _SIDE_FILES:
            self._move_aside(file.with_name(file.name + end))
        fresh.rename(file)
        sync(file.parent)

    def _prepare_sqlite(self, dump: Path, fresh: Path) -> None:
        """Make `fresh` a database the service can start on, in one file without side files."""
        for end in _SIDE_FILES:
            fresh.with_name(fresh.name + end).unlink(missing_ok=True)
        link_or_copy(dump, fresh, may_link=False)
        database = Database(f"sqlite:///{fresh}")
        try:
            with database.reading() as session:
                damage = database.backend.find_damage(session)
            if damage:
                raise BackupError(f"The database in the backup is damaged: {'; '.join(damage)}")
            self._bring_up_to_date(database)
        finally:
            database.dispose()  # the last connection moves the write-ahead log into the file
        sync(fresh)

    def _bring_up_to_date(self, database: Database) -> None:
        upgrade(database)
        with database.writing() as session:
            InstallationRepository(session).forget()  # the blobs are in a store of their own now
            self.restored.put_back = release_running(session, now=self.now)
            self.restored.working_keys = KeyRepository(session).count_working(now=self.now)

    def _restore_signing_keys(self) -> None:
        """Restore the keys that signed the adapters. A backup of an older version has none."""
        files = {
            path: name
            for path, name in backup_format.SIGNING_FILES.items()
            if path in self.restored.record.files
        }
        if not files:
            return
        self._move_aside(self.settings.signing_dir)
        make_directory(self.settings.signing_dir)
        for path, name in files.items():
            content = (self.source / path).read_bytes()
            replace_privately(self.settings.signing_dir / name, content)

    def _restore_models(self) -> None:
        """Restore base models whose weights are in the backup, and list the others."""
        for record in sorted(self.restored.record.files):
            if not Path(record).match(f"models/*/{RECORD_NAME}"):
                continue
            model_id = Path(record).parts[1]
            directory = self._data_dir / MODELS_NAME / model_id
            files = [
                name
                for name in self.restored.record.files
                if Path(name).match(f"models/{model_id}/*")
            ]
            if (directory / RECORD_NAME).exists():
                continue
            if files == [record]:
                self.restored.models_to_install.append(model_id)
            else:
                self._restore_model(directory, files)

    def _restore_model(self, directory: Path, files: list[str]) -> None:
        unfinished = directory.with_name(f".{directory.name}.restoring")
        shutil.rmtree(unfinished, ignore_errors=True)  # from an interrupted restore
        for name in files:
            target = unfinished / Path(name).name
            link_or_copy(path_in(self.source, name), target, may_link=self.may_link)
        sync(unfinished)
        unfinished.rename(directory)
        sync(directory.parent)

    def _move_aside(self, path: Path) -> None:
        if path.exists():
            self._replaced.mkdir(exist_ok=True)
            shutil.move(path, self._replaced / path.name)  # the database may be on another disk
