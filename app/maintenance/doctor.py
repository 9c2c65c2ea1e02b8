"""Examines a service, running or stopped, and repairs what is safe to repair."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.migrate import newest_revision, read_revision
from app.core.db.session import Database
from app.core.errors import StoreAwayError
from app.core.installation import open_own_store
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.opening import open_store
from app.maintenance.check_blobs import check_blobs, check_manifests
from app.maintenance.check_database import (
    check_clock,
    check_engine,
    check_integrity,
    check_jobs,
    check_schema,
    check_tasks,
    check_workers,
)
from app.maintenance.check_disk import (
    check_ballast,
    check_file_system,
    check_orphans,
    check_privacy,
    check_space,
)
from app.maintenance.check_store import check_store, check_store_answers
from app.maintenance.check_training import check_base_models, check_sampler, check_sandbox
from app.maintenance.findings import Check, Finding, Level, Patient

_ALWAYS: Sequence[Check] = (
    check_space,
    check_store,
    check_ballast,
    check_file_system,
    check_privacy,
    check_base_models,
    check_engine,
    check_integrity,
    check_schema,
    check_sandbox,
    check_sampler,
)
_ROW_CHECKS: Sequence[Check] = (
    check_jobs,
    check_tasks,
    check_workers,
    check_clock,
)
"""Checks that need the newest schema."""
_BLOB_CHECKS: Sequence[Check] = (check_blobs, check_manifests, check_orphans)
"""Checks of rows against blobs. Orphans come last, because repairs can leave some."""

_QUICK: Sequence[Check] = (
    check_store_answers,
    check_space,
    check_ballast,
    check_file_system,
    check_base_models,
    check_engine,
    check_jobs,
    check_tasks,
    check_workers,
)
"""Checks that take milliseconds, whatever the service holds. None of the others does: they read
every row or every file, or start a process."""
_FRESH_FOR = timedelta(seconds=10)
"""Time for which the findings of the quick checks are used again."""


@dataclass(frozen=True, slots=True)
class Checkup:
    """The findings of the quick checks."""

    findings: Sequence[Finding]
    made_at: datetime


class Checkups:
    """Makes quick checks of the service that this process runs, and repairs nothing."""

    def __init__(self, settings: Settings, database: Database, store: BlobStore) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._lock = threading.Lock()
        self._latest: Checkup | None = None

    def make(self, *, now: datetime) -> Checkup:
        """Make a checkup, or return the last one if it is younger than ten seconds.

        While another thread makes one, return the last one: a store that is away takes seconds.
        """
        latest = self._latest
        if not self._lock.acquire(blocking=latest is None) and latest is not None:
            return latest
        try:
            latest = self._latest
            if latest is None or now - latest.made_at >= _FRESH_FOR:
                patient = Patient(self._settings, self._database, self._store, now=now)
                findings = [finding for check in _QUICK for finding in _make(check, patient)]
                latest = self._latest = Checkup(findings, now)
            return latest
        finally:
            self._lock.release()


def examine(settings: Settings, *, is_deep: bool, may_repair: bool) -> Iterator[Finding]:
    """Run every check in turn. A check that fails is itself a finding.

    Raises:
        NoDatabaseError: there is nothing to examine.
    """
    database = Database(settings.resolved_database_url)
    try:
        inspection.require_database(database)
        patient = Patient(
            settings,
            database,
            open_store(settings),
            now=utc_now(),
            is_deep=is_deep,
            may_repair=may_repair,
        )
        for check in _ALWAYS:
            yield from _make(check, patient)
        if _is_schema_current(patient):
            for check in _ROW_CHECKS:
                yield from _make(check, patient)
            yield from _make(_check_files, patient)
    finally:
        database.dispose()


def _check_files(patient: Patient) -> Iterator[Finding]:
    """Compare rows with blobs, unless the store is another one: repairs would delete its blobs."""
    own = replace(patient, store=open_own_store(patient.settings, patient.database))
    for check in _BLOB_CHECKS:
        yield from _make(check, own)


def _is_schema_current(patient: Patient) -> bool:
    try:
        with patient.database.reading() as session:
            return read_revision(session) == newest_revision()
    except Exception:  # the check of the schema has reported it
        return False


def _make(check: Check, patient: Patient) -> Iterator[Finding]:
    try:
        yield from check(patient)
    except Exception as error:  # the other checks are still useful
        name = check.__name__.removeprefix("_").removeprefix("check_").replace("_", " ")
        why = error.for_operator if isinstance(error, StoreAwayError) else error
        yield Finding(name, Level.BAD, f"could not be checked: {why!s:.500}")
