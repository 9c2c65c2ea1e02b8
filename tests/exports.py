"""Tasks that make exports, as requests and workers leave them."""

import hashlib
import zlib
from typing import Any

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import Task
from app.core.db.repositories.tasks.leases import ClaimedTask, TaskQueue
from app.core.db.session import Database
from app.core.db.tables import Checkpoint
from app.core.hand_off.formats import EXPORT
from app.core.ids import IdPrefix, new_id
from app.core.job.child.training_events import Verification
from app.core.storage.blob_store import BlobStore
from tests.builders import MINUTE, NOW, put_blob

VERIFICATION = Verification(
    prompts=3,
    dtype="bfloat16",
    computed_in="float32",
    max_difference=0.001,
    tolerance=0.05,
    adapter_effect=0.5,
)


def build_task(checkpoint: Checkpoint, **changes: Any) -> Task:
    """An export that nobody has begun."""
    values: dict[str, Any] = {
        "id": new_id(IdPrefix.TASK),
        "project_id": DEFAULT_PROJECT_ID,
        "job_id": checkpoint.job_id,
        "checkpoint_id": checkpoint.id,
        "kind": EXPORT,
        "variant": "merged",
        "created_at": NOW,
        "bytes": 1000,
    }
    return Task(**(values | changes))


def add_task(database: Database, checkpoint: Checkpoint, **changes: Any) -> Task:
    task = build_task(checkpoint, **changes)
    with database.writing() as session:
        session.add(task)
    return task


def add_finished_export(
    database: Database,
    store: BlobStore,
    checkpoint: Checkpoint,
    contents: dict[str, bytes],
    **changes: Any,
) -> Task:
    """An export whose files have these contents."""
    task = build_task(checkpoint, **changes)
    files: dict[str, Any] = {}
    for name, content in contents.items():
        key = f"jobs/{task.job_id}/{task.id}/export-1/{name}"
        put_blob(store, key, content)
        files[name] = {
            "key": key,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "crc32": zlib.crc32(content),
        }
    task.status, task.files, task.result = "succeeded", files, VERIFICATION.model_dump(mode="json")
    task.finished_at, task.expires_at = NOW, changes.get("expires_at", NOW + 1440 * MINUTE)
    task.bytes, task.progress = sum(map(len, contents.values())), 1.0
    with database.writing() as session:
        session.add(task)
    return task


def claim_task(database: Database, worker_id: str = "worker-1", now: Any = NOW) -> ClaimedTask:
    """A lease of one minute on the next task."""
    with database.writing() as session:
        task = TaskQueue(session).claim(worker_id, now=now, lease_for=MINUTE)
    assert task is not None
    return task


def read_task(database: Database, task_id: str) -> Task | None:
    with database.reading() as session:
        return session.get(Task, task_id)
