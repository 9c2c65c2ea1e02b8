"""Puts a backup into a data directory: verified first, then prepared beside, then put in place."""

import shutil
from datetime import datetime
from pathlib import Path

from app.core.base_models import CATALOGUE_NAME, RECORD_NAME
from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.migrate import is_known_revision, upgrade
from app.core.db.session import Database, kind_of
from app.core.db.snapshot import release_running
from app.core.durable import sync
from app.core.occupancy import alone
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance import backup_format
from app.maintenance.backup_format import (
    BackupError,
    BackupRecord,
    iterate_blobs,
    path_in,
    read_record,
    verify,
)
from app.maintenance.durable_files import link_or_copy

_SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""What SQLite keeps of a database, by the ends of their names; all belong together."""


class Restored:
    """What was put back."""

    def __init__(self, record: BackupRecord) -> None:
        self.record = record
        self.damaged: set[str] = set()
        """Keys of blobs that the backup did not have, or not as they were written."""
        self.put_back: list[str] = []
        """Ids of jobs that ran when the backup was made, and now wait for a worker."""
        self.models_to_install: list[str] = []
        self.replaced: Path | None = None
        """Where what was there before is kept."""


def restore_backup(
    settings: Settings,
    source: Path,
    *,
    replace: bool = False,
    may_link: bool = True,
    accept_damage: bool = False,
) -> Restored:
    """Make the data directory and the database those of the backup in `source`.

    Args:
        replace: what is there now is moved aside; a PostgreSQL database is overwritten.
        may_link: give blobs on the same file system a second name instead of a copy.
        accept_damage: leave blobs that are damaged in the backup out, instead of refusing it.

    Raises:
        BackupError: it is damaged, of another kind of database or of a newer version, or there is
            something in the data directory already.
        OccupiedError: the service runs.
        SnapshotError: a dump of PostgreSQL could not be loaded.
    """
    source = source.absolute()
    restored = Restored(read_record(source))
    _check_fit(restored.record, settings)
    restored.damaged = verify(source, accept_damage=accept_damage)
    with alone(settings):
        database = Database(settings.resolved_database_url)
        try:
            if not replace:
                _require_empty(settings, database)
            _put_in_place(settings, database, source, restored, may_link=may_link)
        finally:
            database.dispose()
    return restored


def _check_fit(record: BackupRecord, settings: Settings) -> None:
    kind = kind_of(settings.resolved_database_url)
    if record.database != kind:
        raise BackupError(
            f"The backup is of a {record.database} database, and TUNERY_DATABASE_URL names one of "
            f"{kind}."
        )
    if not is_known_revision(record.revision):
        raise BackupError(
            f"The backup was made by version {record.service_version} of the service, whose schema "
            f"{record.revision} this version does not know. Restore it with that version or newer."
        )


def _require_empty(settings: Settings, database: Database) -> None:
    file = database.backend.file
    has_rows = file.exists() if file is not None else inspection.has_tables(database)
    if has_rows or _has_blobs(settings):
        raise BackupError(
            f"There is a database or there are blobs in {settings.data_dir} already. Name an empty "
            "data directory, or use --force, which moves what is there aside."
        )


def _has_blobs(settings: Settings) -> bool:
    return next(LocalBlobStore(settings.blobs_dir).list_all(), None) is not None


def _put_in_place(
    settings: Settings,
    database: Database,
    source: Path,
    restored: Restored,
    *,
    may_link: bool,
) -> None:
    now = utc_now()
    replaced = settings.data_dir / f"before-restore-{now:%Y%m%dT%H%M%S%f}"
    blobs = settings.data_dir / "blobs.restoring"
    shutil.rmtree(blobs, ignore_errors=True)  # of a try that was broken off
    _copy_blobs(source, blobs, restored.damaged, may_link=may_link)
    file = database.backend.file
    dump = source / restored.record.database_name
    if file is None:
        database.backend.load_dump(dump, replace=inspection.has_tables(database))
        restored.put_back = _bring_up_to_date(database, now)
    else:
        fresh = file.with_name(f"{file.name}.restoring")
        restored.put_back = _prepare_sqlite(dump, fresh, now)
        _move_aside([file.with_name(file.name + end) for end in _SIDE_FILES], replaced)
        fresh.rename(file)
        sync(file.parent)
    if _has_blobs(settings):
        _move_aside([settings.blobs_dir], replaced)
    shutil.rmtree(settings.blobs_dir, ignore_errors=True)
    blobs.rename(settings.blobs_dir)
    if CATALOGUE_NAME in restored.record.files:
        own = settings.data_dir / CATALOGUE_NAME
        _move_aside([own], replaced)
        link_or_copy(source / CATALOGUE_NAME, own, may_link=False)
    _restore_models(settings, source, restored, may_link=may_link)
    sync(settings.data_dir)
    restored.replaced = replaced if replaced.exists() else None


def _copy_blobs(source: Path, target: Path, damaged: set[str], *, may_link: bool) -> None:
    store = LocalBlobStore(target)
    for blob in iterate_blobs(source):
        if blob.key in damaged:
            continue
        scratch = store.scratch_file()
        original = path_in(source / backup_format.BLOBS_NAME, blob.key)
        link_or_copy(original, scratch, may_link=may_link)
        store.put(blob.key, scratch)


def _prepare_sqlite(dump: Path, fresh: Path, now: datetime) -> list[str]:
    """Make `fresh` a database on which the service can be started; it has no side files after."""
    for end in _SIDE_FILES:
        fresh.with_name(fresh.name + end).unlink(missing_ok=True)
    link_or_copy(dump, fresh, may_link=False)
    database = Database(f"sqlite:///{fresh}")
    try:
        with database.reading() as session:
            damage = database.backend.find_damage(session)
        if damage:
            raise BackupError(f"The database in the backup is damaged: {'; '.join(damage)}")
        put_back = _bring_up_to_date(database, now)
    finally:
        database.dispose()  # the last connection moves the write-ahead log into the file
    sync(fresh)
    return put_back


def _bring_up_to_date(database: Database, now: datetime) -> list[str]:
    upgrade(database)
    with database.writing() as session:
        return release_running(session, now=now)


def _restore_models(
    settings: Settings, source: Path, restored: Restored, *, may_link: bool
) -> None:
    """Install the weights that came along; name the base models that have to be fetched again."""
    files = restored.record.files
    models = {Path(name).parts[1] for name in files if Path(name).match(f"models/*/{RECORD_NAME}")}
    for model_id in sorted(models):
        if (settings.data_dir / "models" / model_id / RECORD_NAME).exists():
            continue
        names = [name for name in files if Path(name).match(f"models/{model_id}/*")]
        if names == [f"models/{model_id}/{RECORD_NAME}"]:
            restored.models_to_install.append(model_id)
        else:
            _restore_model(settings, source, model_id, names, may_link=may_link)


def _restore_model(
    settings: Settings, source: Path, model_id: str, names: list[str], *, may_link: bool
) -> None:
    directory = settings.data_dir / "models" / model_id
    partial = directory.with_name(f".{model_id}.restoring")
    shutil.rmtree(partial, ignore_errors=True)  # of a try that was broken off
    for name in names:
        link_or_copy(path_in(source, name), partial / Path(name).name, may_link=may_link)
    sync(partial)
    partial.rename(directory)
    sync(directory.parent)


def _move_aside(paths: list[Path], replaced: Path) -> None:
    for path in paths:
        if path.exists():
            replaced.mkdir(exist_ok=True)
            shutil.move(path, replaced / path.name)  # the database may be on another disk
