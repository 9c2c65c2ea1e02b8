"""Valid things with every default filled in; a test names only what matters to it."""

import hashlib
import os
import zlib
from collections.abc import Collection, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.clock import steady_s, utc_now
from app.core.db.base import Base, Project
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.data_checks import CheckLimits, DataCheckRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.repositories.transitions import settle
from app.core.db.repositories.uploads import UploadRepository
from app.core.db.repositories.workers import WorkerIdentity, WorkerRepository, WorkerStatus
from app.core.db.session import Database, Session
from app.core.db.tables import (
    Checkpoint,
    File,
    Job,
    SavedState,
    StepRow,
    TunedModel,
    Upload,
    UploadPart,
)
from app.core.ids import IdPrefix, new_id
from app.core.job.child.job_spec import JOB_SPEC_NAME, BaseModelRef, DatasetRef, JobSpec
from app.core.job.data_report import DataReport, Distribution, FileReport, LengthBin, LongExample
from app.core.job.loss_log import Rewards, StepMetrics
from app.core.job.status import JobStatus
from app.core.job.training_config import TrainingConfig
from app.core.manifest import MANIFEST_NAME, Manifest, describe_files, describe_inputs
from app.core.storage.blob_store import BlobStore
from app.core.storage.local import LocalBlobStore
from app.core.storage.marker import MARKER_KEY
from app.core.storage.trees import remove_tree
from app.maintenance.keys import create_key
from benchmarks.support.samples import build_chat_file, write_catalogue

__all__ = ["build_chat_file", "write_catalogue"]

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EVERY_CHECK = CheckLimits(created_before=datetime.max.replace(tzinfo=UTC))

TEXT_LINE = b'{"text": "To be, or not to be."}\n'
CHAT_LINE = (
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}\n'
)


def build_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**({"seed": 7} | changes))


def build_job(**changes: Any) -> Job:
    """A job that waits in the queue."""
    job_id = new_id(IdPrefix.JOB)
    values: dict[str, Any] = {
        "id": job_id,
        "project_id": DEFAULT_PROJECT_ID,
        "status": JobStatus.QUEUED,
        "created_at": NOW,
        "base_model": "tiny",
        "training_file_id": "file-training",
        "config": build_config().model_dump(mode="json"),
        "fine_tuned_model": f"ft:tiny:tunery::{job_id[-12:]}",
    }
    return Job(**(values | changes))


def build_job_in(status: JobStatus) -> dict[str, Any]:
    """What the row of a job in this status must have, for `build_job`."""
    changes: dict[str, Any] = {"status": status}
    if status.is_terminal:
        changes["finished_at"] = NOW + MINUTE
    if status is JobStatus.RUNNING:
        changes |= {"attempt": 1, "worker_id": "worker-1", "lease_expires_at": NOW + MINUTE}
    if status is JobStatus.FAILED:
        changes["error"] = {"code": "out_of_memory", "message": "It is full.", "param": None}
    return changes


def build_lease(job: Job, **changes: Any) -> Lease:
    """The right to run a job's first attempt, without asking the database."""
    values: dict[str, Any] = {
        "job_id": job.id,
        "project_id": DEFAULT_PROJECT_ID,
        "attempt": 1,
        "worker_id": "worker-1",
        "claimed_s": steady_s(),
        "base_model": job.base_model,
        "base_model_sha256": None,
        "training_file_id": job.training_file_id,
        "validation_file_id": None,
        "fine_tuned_model": job.fine_tuned_model,
        "config": TrainingConfig.model_validate(job.config),
    }
    return Lease(**(values | changes))


def build_job_spec(lease: Lease, **changes: Any) -> JobSpec:
    """What the training child of this attempt is told."""
    values: dict[str, Any] = {
        "job_id": lease.job_id,
        "attempt": lease.attempt,
        "fine_tuned_model": lease.fine_tuned_model,
        "base_model": BaseModelRef(
            id="tiny", repo="org/tiny", revision="c" * 40, licence="MIT", sha256="b" * 64
        ),
        "training_file": DatasetRef(
            file_id=lease.training_file_id,
            filename="train.jsonl",
            sha256="a" * 64,
            bytes=len(TEXT_LINE),
            examples=1,
        ),
        "validation_file": None,
        "config": lease.config,
        "threads": 1,
    }
    return JobSpec(**(values | changes))


def build_file(content: bytes = TEXT_LINE, **changes: Any) -> File:
    """The row of an uploaded data set; `add_file` stores its bytes as well."""
    file_id = new_id(IdPrefix.FILE)
    values: dict[str, Any] = {
        "id": file_id,
        "project_id": DEFAULT_PROJECT_ID,
        "purpose": "fine-tune",
        "filename": "train.jsonl",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "crc32": zlib.crc32(content),
        "blob_key": f"files/{file_id}",
        "created_at": NOW,
        "format": "text",
        "examples": content.count(b"\n"),
    }
    return File(**(values | changes))


def build_upload(**changes: Any) -> Upload:
    """An upload that waits for its parts."""
    values: dict[str, Any] = {
        "id": new_id(IdPrefix.UPLOAD),
        "project_id": DEFAULT_PROJECT_ID,
        "status": "pending",
        "filename": "train.jsonl",
        "bytes": len(TEXT_LINE),
        "created_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
    }
    return Upload(**(values | changes))


def build_metrics(step: int = 1, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": step,
        "epoch": step / 10,
        "train_loss": 3.0 / step,
        "train_mean_token_accuracy": 0.5,
        "learning_rate": 2e-4,
        "grad_norm": 1.5,
        "tokens_seen": 100 * step,
        "elapsed_s": 0.5 * step,
    }
    return StepMetrics(**(values | changes))


def build_pair_metrics(step: int = 1, **changes: Any) -> StepMetrics:
    """A step on preferences, with an evaluation."""
    values: dict[str, Any] = {
        "valid_loss": 0.5,
        "valid_mean_token_accuracy": 0.25,
        "train_rewards": Rewards(chosen=0.5, rejected=-0.25, accuracy=0.75),
        "valid_rewards": Rewards(chosen=0.25, rejected=0.125, accuracy=0.5),
    }
    return build_metrics(step, **(values | changes))


def build_step(job: Job, step: int, **changes: Any) -> StepRow:
    """A row of the loss log of a job, as its first attempt records it."""
    metrics = build_metrics(step, **changes)
    losses = {"train_loss": metrics.train_loss, "valid_loss": metrics.valid_loss}
    values = {"job_id": job.id, "step": step, "attempt": 1, "metrics": metrics.model_dump()}
    return StepRow(**values, **losses)


def build_data_report(**changes: Any) -> DataReport:
    """The report on a training file of ten short examples."""
    lengths = Distribution(min=12, median=14, mean=14.0, p95=16, max=16)
    training_file = FileReport(
        file_id="file-training",
        filename="train.jsonl",
        lines=10,
        examples=10,
        tokens=140,
        learned_tokens=60,
        tokens_per_example=lengths,
        learned_tokens_per_example=lengths,
        lengths=(LengthBin(up_to_tokens=16, examples=10),),
        longest=(LongExample(line=3, tokens=16),),
        truncated=0,
        dropped=0,
        lost_learned_tokens=0,
        lost_stop_tokens=0,
        nothing_to_learn=0,
        duplicates=0,
        split_conversations=0,
        split_examples=0,
        refusal=None,
    )
    values: dict[str, Any] = {
        "training_file": training_file,
        "validation_file": None,
        "held_out": None,
        "stop_tokens": ("<|im_end|>",),
        "warnings": (),
    }
    return DataReport(**(values | changes))


def build_base_metrics(**changes: Any) -> StepMetrics:
    """The row of step 0: the evaluation of the base model."""
    values: dict[str, Any] = {
        "step": 0,
        "epoch": 0.0,
        "valid_loss": 4.0,
        "valid_mean_token_accuracy": 0.125,
        "tokens_seen": 0,
        "elapsed_s": 0.0,
    }
    return StepMetrics(**(values | changes))


def build_checkpoint(job: Job, step: int = 1, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "id": new_id(IdPrefix.CHECKPOINT),
        "project_id": DEFAULT_PROJECT_ID,
        "job_id": job.id,
        "attempt": 1,
        "step": step,
        "created_at": NOW,
        "metrics": build_metrics(step).model_dump(),
        "manifest_sha256": hashlib.sha256(str(step).encode()).hexdigest(),
    }
    return Checkpoint(**(values | changes))


def build_saved_state(job_id: str, step: int, files: dict[str, Any], **changes: Any) -> SavedState:
    values: dict[str, Any] = {
        "job_id": job_id,
        "project_id": DEFAULT_PROJECT_ID,
        "step": step,
        "attempt": 1,
        "created_at": NOW,
        "files": files,
    }
    return SavedState(**(values | changes))


def put_blob(store: BlobStore, key: str, content: bytes) -> None:
    scratch = store.scratch_file()
    scratch.write_bytes(content)
    store.put(key, scratch)


def add_file(
    database: Database, store: BlobStore, content: bytes = TEXT_LINE, **changes: Any
) -> File:
    """A file whose bytes are in the store and whose row is in the database."""
    file = build_file(content, **changes)
    put_blob(store, file.blob_key, content)
    with database.writing() as session:
        FileRepository(session, file.project_id).add(file)
    return file


def build_part(upload: Upload, content: bytes = TEXT_LINE) -> UploadPart:
    """The row of a part; `add_part` stores its bytes as well."""
    part_id = new_id(IdPrefix.UPLOAD_PART)
    return UploadPart(
        id=part_id,
        project_id=upload.project_id,
        upload_id=upload.id,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        blob_key=f"uploads/{part_id}",
        created_at=NOW,
    )


def add_key(
    database: Database,
    project: str = DEFAULT_PROJECT_ID,
    scopes: Collection[Scope] = tuple(Scope),
    *,
    expires_at: datetime | None = None,
    is_revoked: bool = False,
) -> str:
    """An API key. The project is made too, if there is none of this name."""
    now = utc_now()
    with database.writing() as session:
        new = create_key(session, project, scopes, expires_at=expires_at, now=now)
        if is_revoked:
            KeyRepository(session).revoke(new.key_id, now=now)
    return new.key


def bearer(key: str) -> dict[str, str]:
    """The header that sends a key."""
    return {"authorization": f"Bearer {key}"}


def add_part(
    database: Database, store: BlobStore, upload: Upload, content: bytes = TEXT_LINE
) -> UploadPart:
    """A part whose bytes are in the store; its upload is added with the first one."""
    part = build_part(upload, content)
    put_blob(store, part.blob_key, content)
    with database.writing() as session:
        uploads = UploadRepository(session, part.project_id)
        if session.get(Upload, upload.id) is None:
            uploads.add(upload)
        uploads.add_part(part)
    return part


def add_project(database: Database, project_id: str, **changes: Any) -> Project:
    """A project beside the default one, without limits."""
    project = Project(id=project_id, name=project_id, created_at=NOW, **changes)
    with database.writing() as session:
        session.add(project)
    return project


def add_job(database: Database, *, shared: str | None = None, **changes: Any) -> Job:
    """A job in the queue of the database, as if its data had been checked."""
    job = build_job(**changes)
    with database.writing() as session:
        JobRepository(session, job.project_id).add(job, shared=shared)
        if job.status is not JobStatus.VALIDATING_FILES:
            told = "Files validated, moving job to queued state"
            EventRepository(session, job.project_id).add(job.id, told, now=job.created_at)
    return job


def claim_check(
    database: Database,
    worker_id: str = "worker-1",
    limits: CheckLimits = EVERY_CHECK,
    now: datetime = NOW,
) -> Lease | None:
    """A lease of one minute on the next data check, if there is one."""
    with database.writing() as session:
        return DataCheckRepository(session).claim(worker_id, limits, now=now, lease_for=MINUTE)


def add_tokens(database: Database, job: Job, store: BlobStore | None = None, *keys: str) -> None:
    """Give a job tokens, which its data check would have made.

    Args:
        store: contains their bytes afterwards. By default, they have none.
        keys: keys of their blobs.
    """
    files: dict[str, Any] = {}
    for key in keys or (f"jobs/{job.id}/tokens",):
        files[key] = {
            "key": key,
            "bytes": len(TEXT_LINE),
            "sha256": hashlib.sha256(TEXT_LINE).hexdigest(),
        }
        if store is not None:
            put_blob(store, key, TEXT_LINE)
    with database.writing() as session:
        session.get_one(DataCheck, job.id).files = files


def pass_checks(database: Database, now: datetime = NOW) -> None:
    """Check the data of all jobs that wait for that, as a worker does, and find no fault."""
    report = build_data_report().model_dump(mode="json")
    while lease := claim_check(database, now=now):
        with database.writing() as session:
            DataCheckRepository(session).finish(lease, report, now=now)


def get_job(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return JobRepository(session, DEFAULT_PROJECT_ID).get(job_id)


def add_worker(
    database: Database,
    worker_id: str = "worker-1",
    now: datetime = NOW,
    *,
    memory_bytes: int | None = None,
    **changes: Any,
) -> WorkerIdentity:
    """A worker that has sent a heartbeat."""
    worker = build_identity(worker_id, **changes)
    with database.writing() as session:
        WorkerRepository(session).beat(worker, now=now, memory_bytes=memory_bytes)
    return worker


def list_workers(database: Database) -> list[WorkerStatus]:
    with database.reading() as session:
        return WorkerRepository(session).list_all()


def build_identity(worker_id: str = "worker-1", **changes: Any) -> WorkerIdentity:
    values: dict[str, Any] = {"host": "host-1", "pid": 1, "process_started": 1}
    return WorkerIdentity(worker_id, **(values | changes))


def claim(database: Database, worker_id: str = "worker-1", now: datetime = NOW) -> Lease:
    """A lease of one minute on the oldest job. Its data is checked first if nobody has."""
    pass_checks(database, now)
    with database.writing() as session:
        lease = LeaseRepository(session).claim(worker_id, now=now, lease_for=MINUTE)
    assert lease is not None
    return lease


def add_succeeded_job(
    database: Database,
    store: BlobStore,
    *,
    steps: tuple[int, ...] = (1,),
    best: int = -1,
    project_id: str = DEFAULT_PROJECT_ID,
) -> Job:
    """A job that has ended well: a loss log, a checkpoint at each of these steps, and a model.

    Args:
        best: which of the checkpoints is the result; after an early stop, it is not the last.
    """
    job = add_job(database, project_id=project_id)
    lease = claim(database)
    result = add_result_file(database, store, job, "step_metrics.csv")
    checkpoints = [build_checkpoint(job, step) for step in steps]
    for checkpoint in checkpoints:
        checkpoint.files = [
            build_result_file(store, job, name, f"{name} of step {checkpoint.step}\n" * 1000)
            for name in ("adapter_model.safetensors", "manifest.json")
        ]
    with database.writing() as session:
        leases = LeaseRepository(session)
        log = [build_metrics(step) for step in range(1, steps[-1] + 1)]
        leases.record_steps(lease, log, tokens_per_second=200.0, estimated_finish_at=None)
        for checkpoint in checkpoints:
            CheckpointRepository(session, project_id).add(checkpoint)
        TunedModelRepository(session, project_id).add(
            TunedModel(
                id=job.fine_tuned_model,
                job_id=job.id,
                checkpoint_id=checkpoints[best].id,
                base_model=job.base_model,
                created_at=NOW + MINUTE,
            )
        )
        held = leases.hold(lease)
        held.trained_tokens, held.result_file_id = 1234, result.id
        held.result_checkpoint_id = checkpoints[best].id
        settle(session, held, JobStatus.SUCCEEDED, now=NOW + MINUTE)
    with database.reading() as session:
        return JobRepository(session, project_id).get(job.id)


def build_result_file(store: BlobStore, job: Job, name: str, content: str) -> File:
    """Something that a job has made, with its bytes in the store."""
    file = build_file(
        content.encode(),
        filename=name,
        purpose="fine-tune-results",
        format=None,
        examples=None,
        project_id=job.project_id,
        job_id=job.id,
    )
    put_blob(store, file.blob_key, content.encode())
    return file


def add_result_file(database: Database, store: BlobStore, job: Job, name: str) -> File:
    file = build_result_file(store, job, name, "step,train_loss\n1,3.0\n")
    with database.writing() as session:
        FileRepository(session, job.project_id).add(file)
    return file


def write_checkpoint(directory: Path, step: int, *, name: str = "step", **changes: Any) -> None:
    """What a training child leaves in `out/step-N`: some files and their manifest."""
    checkpoint = directory / "out" / f"{name}-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_model.safetensors").write_bytes(bytes([step]) * 5000)
    (checkpoint / "adapter_config.json").write_text('{"r": 64}')
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    values: dict[str, Any] = {
        "job_id": spec.job_id,
        "attempt": spec.attempt,
        "step": step,
        "files": describe_files(checkpoint),
        "provenance": describe_inputs(spec),
    }
    (checkpoint / MANIFEST_NAME).write_text(Manifest(**(values | changes)).model_dump_json())


def lock_out_writers(session: Session) -> None:
    """Until the transaction ends, nobody else can write to any table; readers do not notice."""
    connection = session.connection()  # SQLite's transactions begin with that very lock
    if connection.dialect.name == "postgresql":
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        connection.execute(text(f"LOCK TABLE {tables} IN EXCLUSIVE MODE"))


def dump_tables(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table: what must be the same when nothing was written."""
    with database.reading() as session:
        return {
            table.name: sorted(map(tuple, session.execute(table.select())), key=repr)
            for table in Base.metadata.sorted_tables
        }


def list_messages(database: Database, job_id: str) -> list[str]:
    """What its user was told, from the first to the last."""
    with database.reading() as session:
        page = EventRepository(session, DEFAULT_PROJECT_ID).list_page(
            job_id, after=None, limit=1000
        )
        return [event.message for event in reversed(page.rows)]


def list_checkpoints(database: Database, job_id: str) -> list[Checkpoint]:
    """Its checkpoints, from the first to the last."""
    with database.reading() as session:
        page = CheckpointRepository(session, DEFAULT_PROJECT_ID).list_page(
            job_id, after=None, limit=1000
        )
        return list(reversed(page.rows))


@contextmanager
def nested_directories(top: Path, *, levels: int, name: str = "d") -> Generator[None]:
    """Directories in a new one at `top`, each in the one before, until no path can name the last.

    All of them were last changed in 1970. They are deleted afterwards, because nobody else could.
    """
    top.mkdir(parents=True)
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=descriptor)
        deeper = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.utime(descriptor, (0, 0))
        os.close(descriptor)
        descriptor = deeper
    os.utime(descriptor, (0, 0))
    os.close(descriptor)
    try:
        yield
    finally:
        remove_tree(top.parent, top.name)


def list_blobs(store: LocalBlobStore) -> list[str]:
    """The keys of all blobs but the marker, and whatever is left in the scratch space."""
    root = store.scratch_file().parents[1]
    paths = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != MARKER_KEY)
