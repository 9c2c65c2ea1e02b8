"""A worker that does tasks with a fake child."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.db.check_tables import Task
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import Checkpoint
from app.core.manifest import MANIFEST_NAME, Manifest
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_succeeded_job,
    build_job_spec,
    build_lease,
    build_result_file,
    list_blobs,
    list_checkpoints,
)
from tests.exports import add_task, read_task
from tests.fakes import Act, FakeLauncher, FrozenClock
from worker.attempt.lease_keeper import Resources
from worker.tasks.loop import TaskDoer


class Bench:
    """A doer of tasks with a fake child, and a task."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: LocalBlobStore,
        catalogue: Catalogue,
        clock: FrozenClock,
    ) -> None:
        self.database = database
        self.store = store
        self.clock = clock
        self.launcher = FakeLauncher()
        self.resources = Resources(settings, database, store, catalogue, self.launcher, clock)
        self.doer = TaskDoer("worker-1", self.resources, self.launcher)
        self.job = add_succeeded_job(database, store)
        (self.checkpoint,) = list_checkpoints(database, self.job.id)
        self.give_manifest(self.checkpoint)
        self.blobs = list_blobs(store)
        self.task_id = add_task(database, self.checkpoint, variant="gguf", bytes=100_000).id

    def give_manifest(
        self, checkpoint: Checkpoint, provenance: dict[str, Any] | None = None
    ) -> None:
        """Replace what stands for the manifest of the checkpoint by a manifest."""
        weights = next(one for one in checkpoint.files if one.filename.endswith("safetensors"))
        spec = build_job_spec(build_lease(self.job))
        content = Manifest(
            job_id=self.job.id,
            attempt=1,
            step=checkpoint.step,
            files={weights.filename: {"bytes": weights.bytes, "sha256": weights.sha256}},  # pyright: ignore[reportArgumentType]
            provenance=provenance or spec.model_dump(mode="json"),
        ).model_dump_json()
        file = build_result_file(self.store, self.job, MANIFEST_NAME, content)
        with self.database.writing() as session:
            row = session.get_one(Checkpoint, checkpoint.id)
            old = next(one for one in row.files if one.filename == MANIFEST_NAME)
            for name in ("bytes", "sha256", "crc32", "blob_key"):
                setattr(old, name, getattr(file, name))

    def do(self, *acts: Act, exit_code: int = 0) -> float | None:
        self.launcher.acts = acts
        self.launcher.exit_code = exit_code
        return self.doer.do_next(lambda: None)

    def task(self) -> Task:
        task = read_task(self.database, self.task_id)
        assert task is not None
        return task

    def delete_job(self) -> None:
        with self.database.writing() as session:
            jobs = JobRepository(session, DEFAULT_PROJECT_ID)
            jobs.delete(jobs.get(self.job.id))


def doing(act: Callable[[], None]) -> Callable[[Path], None]:
    """An act of the child that reports nothing."""
    return lambda _: act()
