"""Examines a service, running or stopped, and repairs what is safe to repair."""

from collections.abc import Iterator, Sequence

from app.core.clock import utc_now
from app.core.db import inspection
from app.core.db.migrate import newest_revision, read_revision
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance.check_blobs import check_blobs, check_manifests
from app.maintenance.check_database import (
    check_clock,
    check_engine,
    check_integrity,
    check_jobs,
    check_schema,
    check_workers,
)
from app.maintenance.check_disk import (
    check_ballast,
    check_file_system,
    check_orphans,
    check_privacy,
    check_space,
)
from app.maintenance.check_training import check_base_models, check_sandbox
from app.maintenance.findings import Check, Finding, Level, Patient

_ALWAYS: Sequence[Check] = (
    check_space,
    check_ballast,
    check_file_system,
    check_privacy,
    check_base_models,
    check_engine,
    check_integrity,
    check_schema,
    check_sandbox,
)
_ROW_CHECKS: Sequence[Check] = (
    check_jobs,
    check_workers,
    check_clock,
    check_blobs,
    check_manifests,
    check_orphans,
)
"""Checks that need the newest schema. Orphans come last, because repairs can leave some."""


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
            LocalBlobStore(settings.blobs_dir),
            now=utc_now(),
            is_deep=is_deep,
            may_repair=may_repair,
        )
        for check in _ALWAYS:
            yield from _make(check, patient)
        if _is_schema_current(patient):
            for check in _ROW_CHECKS:
                yield from _make(check, patient)
    finally:
        database.dispose()


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
        name = check.__name__.removeprefix("check_").replace("_", " ")
        yield Finding(name, Level.BAD, f"could not be checked: {error!s:.500}")
