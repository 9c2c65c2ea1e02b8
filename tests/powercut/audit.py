"""What the disk must hold after a power cut, given what was acknowledged before it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text

from app.core import manifest
from app.core.db.tables import Checkpoint, Event, File, Job
from app.core.errors import BlobNotFoundError
from app.core.manifest import MANIFEST_NAME, Manifest
from tests.powercut.writers import Service, is_whole

_EVENTS_OF_A_NEW_JOB = 2


@dataclass(slots=True)
class Acknowledged:
    """All that the writers of one disk were told is done."""

    jobs: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    """Rows of files: sha256 by blob key."""
    blobs: dict[str, str] = field(default_factory=dict)
    """Blobs without a row so far: sha256 by key."""
    checkpoints: set[str] = field(default_factory=set)
    """Directories, from the data directory."""
    rows: set[str] = field(default_factory=set)
    """Rows of checkpoints."""
    kinds: Counter[str] = field(default_factory=Counter)
    """How many acknowledgements there were of each kind."""

    def add(self, kind: str, *what: Any) -> None:
        self.kinds[kind] += 1
        if kind == "jobs":
            self.jobs.update(what[0])
            self.kinds["rows of jobs and their events"] += 4 * len(what[0])
        elif kind == "file":
            self.files[what[0]] = what[1]
        elif kind == "stored":
            self.blobs.update(what[0])
        elif kind == "checkpoint":
            self.checkpoints.add(what[0])
        else:
            self.rows.add(what[0])


def audit(root: Path, acknowledged: Acknowledged) -> list[tuple[str, str]]:
    """Every broken promise, as what kind it is and what it is about."""
    with Service(root) as service:  # as after a power cut: it starts, and recovers what it can
        return [
            *_check_database(service),
            *_check_rows(service, acknowledged),
            *_check_blobs(service, acknowledged),
            *_check_checkpoints(service.data_dir / "work", acknowledged),
        ]


def _check_database(service: Service) -> list[tuple[str, str]]:
    with service.database.reading() as session:
        integrity = session.scalars(text("PRAGMA integrity_check")).all()
        dangling = session.execute(text("PRAGMA foreign_key_check")).all()
    found = [("database corrupt", line) for line in integrity if line != "ok"]
    return found + [("foreign key dangles", str(tuple(row))) for row in dangling]


def _check_rows(service: Service, acknowledged: Acknowledged) -> list[tuple[str, str]]:
    with service.database.reading() as session:
        jobs = dict(session.execute(select(Job.id, Job.suffix)).all())
        rows = set(session.scalars(select(Checkpoint.id)))
        keys = set(session.scalars(select(File.blob_key)))
        events = dict(
            session.execute(select(Event.job_id, func.count()).group_by(Event.job_id)).all()
        )
    together = Counter(suffix for suffix in jobs.values() if suffix)
    return [
        *(("job lost", job_id) for job_id in acknowledged.jobs - jobs.keys()),
        *(("row lost", row) for row in acknowledged.rows - rows),
        *(("row lost", key) for key in acknowledged.files.keys() - keys),
        *(("job without its events", i) for i in jobs if events.get(i) != _EVENTS_OF_A_NEW_JOB),
        *(
            ("transaction in part", tag)
            for tag, number in together.items()
            if number != int(tag.rpartition("/")[2])
        ),
    ]


def _check_blobs(service: Service, acknowledged: Acknowledged) -> list[tuple[str, str]]:
    """A row, too, is a promise that its blob is there and whole, acknowledged or not."""
    with service.database.reading() as session:
        promised = dict(session.execute(select(File.blob_key, File.sha256)).all())
    promised |= acknowledged.blobs | acknowledged.files
    blobs_dir = service.data_dir / "blobs"
    found: list[tuple[str, str]] = []
    for key, sha256 in promised.items():
        try:
            service.store.open(key).close()
        except BlobNotFoundError:
            found.append(("blob lost", key))
        else:
            if manifest.sha256_of(blobs_dir / key) != sha256:
                found.append(("blob damaged", key))
    for path in blobs_dir.rglob("*"):
        key = str(path.relative_to(blobs_dir))
        if path.is_file() and not key.startswith(".") and key not in promised:
            found += [] if _is_whole(path) else [("blob damaged", key)]
    return found


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    if path.name != MANIFEST_NAME:
        return is_whole(content)
    try:
        Manifest.model_validate_json(content)
    except ValueError:
        return False
    return True


def _check_checkpoints(work_dir: Path, acknowledged: Acknowledged) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    present = {str(path.relative_to(work_dir.parent)) for path in work_dir.glob("*/*/out/step-*")}
    for name in sorted(present):
        try:
            manifest.verify(work_dir.parent / name)
        except manifest.ManifestError as error:
            found.append(("checkpoint damaged", str(error)))
    return found + [("checkpoint lost", name) for name in acknowledged.checkpoints - present]
