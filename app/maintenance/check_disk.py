"""Checks the disk: its free space, its file system and files that nothing uses."""

import re
from collections.abc import Iterator
from pathlib import Path

from app.core.disk import MIB, Ballast, free_bytes, has_room, how_to_make_room
from app.core.orphans import find_orphans, free_orphans
from app.core.storage.privacy import close, is_open, iterate_open
from app.maintenance.findings import Finding, Level, Patient

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_SHARED = {"9p", "afs", "ceph", "cifs", "glusterfs", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}
"""File systems on which SQLite's locks or its shared memory are unreliable."""


def check_space(patient: Patient) -> Iterator[Finding]:
    settings = patient.settings
    free, reserved = free_bytes(settings.data_dir), settings.min_free_bytes
    message = f"{free // MIB:,} MiB are free; {reserved // MIB:,} MiB are kept free"
    advice = f"{how_to_make_room(settings)}."
    if not has_room(settings):
        yield Finding(
            "space", Level.BAD, f"{message}, so uploads and new jobs are refused", advice=advice
        )
    elif free < 2 * reserved:
        yield Finding("space", Level.WARN, message, advice=advice)
    else:
        yield Finding("space", Level.OK, message)


def check_ballast(patient: Patient) -> Iterator[Finding]:
    ballast, size = Ballast(patient.settings), patient.settings.ballast_bytes
    if not size:
        advice = "Set TUNERY_BALLAST_BYTES, or deletion may fail once the disk is full."
        yield Finding("ballast", Level.WARN, "switched off", advice=advice)
    elif ballast.is_there:
        yield Finding("ballast", Level.OK, f"{size // MIB} MiB to drop when the disk is full")
    elif patient.may_repair and ballast.make_if_room():
        yield Finding("ballast", Level.OK, f"{size // MIB} MiB", repaired="made")
    else:
        message = "there is none: it was dropped on a full disk, or no worker has started yet"
        advice = "Free some space. A worker, or `tunery doctor --repair`, then makes it again."
        yield Finding("ballast", Level.WARN, message, advice=advice)


def check_file_system(patient: Patient, mounts: Path = _MOUNTS) -> Iterator[Finding]:
    database = patient.database.backend.file
    directory = (database or patient.settings.data_dir / "x").parent.resolve()
    kind = file_system_of(directory, mounts)
    if database is not None and (kind in _SHARED or kind.startswith("fuse")):
        message = f"{kind} below {directory}: SQLite can lose or corrupt its database there"
        advice = "Move the data directory to a local disk, or use PostgreSQL."
        yield Finding("file system", Level.WARN, message, advice=advice)
    else:
        yield Finding("file system", Level.OK, f"{kind} below {directory}")


def file_system_of(directory: Path, mounts: Path = _MOUNTS) -> str:
    """Type of the file system of a directory, such as `ext4`. The path must have no links."""
    if not mounts.exists():
        return "unknown"
    deepest, kind = -1, "unknown"
    for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), before.split()[4]))
        depth = len(point.parts)
        if directory.is_relative_to(point) and depth >= deepest:  # later mounts hide earlier ones
            deepest, kind = depth, after.split()[0]
    return kind


def check_privacy(patient: Patient) -> Iterator[Finding]:
    opened = list(iterate_open(patient.settings))
    if not opened:
        yield Finding("privacy", Level.OK, "only the owner can read the data directory")
    elif patient.may_repair:
        for path in opened:
            close(path)
        message = "only the owner can read the data directory"
        yield Finding("privacy", Level.OK, message, repaired=f"closed {len(opened)} files")
    else:
        level = Level.BAD if is_open(patient.settings.data_dir) else Level.WARN
        message = f"other users have permissions on {len(opened)} files, such as {opened[0]}"
        yield Finding("privacy", level, message, advice="Run this with --repair.")


def check_orphans(patient: Patient) -> Iterator[Finding]:
    where = (patient.database, patient.store, patient.settings)
    orphans = free_orphans(*where) if patient.may_repair else find_orphans(*where)
    if orphans and not patient.may_repair:
        advice = "A worker deletes them once an hour; `tunery doctor --repair` deletes them now."
        yield Finding("orphans", Level.WARN, f"left behind: {orphans}", advice=advice)
    else:
        yield Finding("orphans", Level.OK, "none", repaired=f"freed {orphans}" if orphans else "")
