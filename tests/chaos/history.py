"""What must be true of a service's database and blobs, whatever was done to its processes."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from itertools import pairwise

from sqlalchemy import func, select, text

from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Event, File, Job, StepRow, TunedModel
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from app.core.storage.blob_store import BlobStore
from tests.chaos.stand_in_trainer import OVERLAP, chain, loss_of, next_link

LOOK_S = 0.5


def check_history(database: Database, store: BlobStore, accepted: Mapping[str, bytes]) -> list[str]:
    """Everything that is wrong with jobs that have all ended.

    Args:
        accepted: the training data of every job whose creation was acknowledged, by its id.
    """
    wrong: list[str] = []
    with database.reading() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        wrong += [f"{job_id}: lost" for job_id in accepted.keys() - jobs.keys()]
        for job_id, data in accepted.items():
            if job_id in jobs:
                wrong += check_job(session, store, jobs[job_id], data)
        wrong += check_files(session.scalars(select(File)).all(), store)
        overlaps = session.scalars(select(Event).where(Event.message == OVERLAP))
        wrong += [f"{event.job_id}: two children at once" for event in overlaps]
    return wrong + check_database(database)


def check_job(session, store: BlobStore, job: Job, data: bytes) -> list[str]:
    wrong: list[str] = []

    def demand(holds: object, what: str) -> None:
        if not holds:
            wrong.append(f"{job.id}: {what}")

    demand(job.status is JobStatus.SUCCEEDED, f"is {job.status}: {job.error}")
    total = job.config["max_steps"]
    rows = session.scalars(
        select(StepRow).where(StepRow.job_id == job.id).order_by(StepRow.step)
    ).all()
    demand([row.step for row in rows] == list(range(1, total + 1)), "loss log with gaps")
    demand(
        all(before.attempt <= after.attempt for before, after in pairwise(rows)),
        "a stale attempt has written steps",
    )
    digest, losses = hashlib.sha256(data).hexdigest(), []
    for step in range(1, total + 1):
        digest = next_link(digest, step)
        losses.append(loss_of(digest))
    demand([row.metrics["train_loss"] for row in rows] == losses, "loss log with wrong losses")

    outcomes = [
        row.outcome for row in session.scalars(select(Attempt).where(Attempt.job_id == job.id))
    ]
    demand(outcomes.count("succeeded") == 1, f"published by {outcomes.count('succeeded')} attempts")
    demand(None not in outcomes, "an attempt without an end")
    succeeded = session.scalar(
        select(Attempt.attempt).where(Attempt.job_id == job.id, Attempt.outcome == "succeeded")
    )
    demand(succeeded == job.attempt, "the result is not the newest attempt's")
    told = session.scalars(
        select(func.count()).where(
            Event.job_id == job.id, Event.message == "The job has successfully completed"
        )
    ).one()
    demand(told == 1, f"completed {told} times")
    models = session.scalars(select(TunedModel).where(TunedModel.job_id == job.id)).all()
    demand(len(models) == 1, f"{len(models)} tuned models")
    checkpoints = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)).all()
    steps = sorted(one.step for one in checkpoints)
    every = job.config["checkpoint_steps"]
    due = sorted({*range(every, total + 1, every), total})
    demand(steps == due, f"checkpoints at {steps}, due at {due}")
    for checkpoint in checkpoints:
        adapter = next(file for file in checkpoint.files if file.filename.endswith("safetensors"))
        with store.open(adapter.blob_key) as blob:
            demand(blob.read().decode() == chain(data, checkpoint.step), "a wrong adapter")
    return wrong


def check_files(files, store: BlobStore) -> list[str]:
    wrong: list[str] = []
    for file in files:
        with store.open(file.blob_key) as blob:
            found = hashlib.sha256(blob.read()).hexdigest()
        if found != file.sha256:
            wrong.append(f"{file.id}: not the bytes that were stored")
    return wrong


def check_database(database: Database) -> list[str]:
    if database.engine.dialect.name != "sqlite":
        return []
    with database.reading() as session:
        integrity = session.execute(text("PRAGMA integrity_check")).scalars().all()
        dangling = session.execute(text("PRAGMA foreign_key_check")).all()
    return [f"integrity: {integrity}"] * (integrity != ["ok"]) + [f"dangling: {dangling}"] * bool(
        dangling
    )


class StuckWatch(threading.Thread):
    """Looks for jobs whose lease has run out long ago, while everything else goes on.

    Args:
        slack_s: so long after its end at most, somebody must have taken the job over.
        is_disturbed: whether time does not count: SQLite's only write lock may be held by a
            process that was suspended in a transaction, and nobody can do anything about that.
    """

    def __init__(
        self, database: Database, *, slack_s: float, is_disturbed: Callable[[], bool]
    ) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._slack_s = slack_s
        self._is_disturbed = is_disturbed
        self._late_s: dict[str, float] = {}
        self._ended = threading.Event()
        self.stuck: set[str] = set()
        self.looks = 0

    def run(self) -> None:
        while not self._ended.wait(LOOK_S):
            with self._database.reading() as session:
                late = session.scalars(
                    select(Job.id).where(
                        Job.status == JobStatus.RUNNING, Job.lease_expires_at < utc_now()
                    )
                ).all()
            more_s = 0.0 if self._is_disturbed() else LOOK_S
            self._late_s = {job_id: self._late_s.get(job_id, 0.0) + more_s for job_id in late}
            self.stuck |= {job for job, late_s in self._late_s.items() if late_s > self._slack_s}
            self.looks += 1

    def end(self) -> None:
        self._ended.set()
        self.join()
