"""Tasks by real processes: whole, contained, and made again when one of them is killed."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.db.check_tables import Task
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.tasks.reports import begin_report
from app.core.db.session import Database
from app.core.db.tables import Checkpoint, Job
from app.core.job.child.containment import find_layers
from app.core.job.scores.report import AnswerReport
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_job,
    build_checkpoint,
    build_file,
    build_job_spec,
    build_lease,
    put_blob,
)
from tests.children import find_children
from tests.export_jobs import STEP, write_adapter_checkpoint
from tests.exports import add_task, read_task
from tests.tiny import build_peft_model, install_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService
from worker.attempt.lease_keeper import Resources
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import LocalLauncher
from worker.tasks.loop import TaskDoer

LIMIT_S = 120.0


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a tiny base model that works."""
    directory = tmp_path / "data"
    install_tiny_model(directory, source=tmp_path / "source" / "tiny")
    return directory


@pytest.fixture
def checkpoint(
    settings: Settings, database: Database, store: LocalBlobStore, tmp_path: Path
) -> Checkpoint:
    """A trained adapter of a tiny base model."""
    job = add_job(database)
    base_model = load_catalogue(settings.data_dir).directory("tiny")
    written = tmp_path / "checkpoint"
    spec = build_job_spec(build_lease(job))
    write_adapter_checkpoint(written, spec, build_peft_model(), base_model=base_model)
    checkpoint = build_checkpoint(job, STEP)
    checkpoint.files = [
        build_file(path.read_bytes(), filename=path.name, job_id=job.id)
        for path in sorted(written.iterdir())
    ]
    for file in checkpoint.files:
        put_blob(store, file.blob_key, (written / file.filename).read_bytes())
    with database.writing() as session:
        CheckpointRepository(session, job.project_id).add(checkpoint)
    return checkpoint


@pytest.fixture
def task(database: Database, checkpoint: Checkpoint) -> Task:
    """A merged model that somebody has asked for."""
    return add_task(database, checkpoint, bytes=64 * 1024 * 1024)


@pytest.fixture
def doer(settings: Settings, database: Database, store: LocalBlobStore) -> TaskDoer:
    layers = find_layers()
    sandbox = Sandbox(layers, settings.data_dir, settings.workers_dir, 1)
    settings.workers_dir.mkdir(parents=True, exist_ok=True)
    launcher = LocalLauncher(sandbox=sandbox)
    catalogue = load_catalogue(settings.data_dir)
    resources = Resources(settings, database, store, catalogue, launcher, utc_now)
    return TaskDoer("worker-1", resources, launcher)


def must_read(database: Database, task_id: str) -> Task:
    task = read_task(database, task_id)
    assert task is not None
    return task


def check_published(task: Task, store: LocalBlobStore, target: Path) -> None:
    """Load what was published, and see that it computes something."""
    assert task.status == "succeeded", task.error
    target.mkdir()
    for name, file in (task.files or {}).items():
        with store.open(file["key"]) as blob:
            (target / name).write_bytes(blob.read())
    merged = AutoModelForCausalLM.from_pretrained(target)
    assert merged(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.only_sqlite
def test_a_contained_child_makes_a_model_that_loads(
    task: Task, doer: TaskDoer, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    assert doer.do_next(lambda: None) == 0.0

    done = must_read(database, task.id)
    check_published(done, store, tmp_path / "merged")
    assert done.result is not None
    assert done.result["max_difference"] < done.result["tolerance"] < done.result["adapter_effect"]


@pytest.mark.only_sqlite
def test_a_contained_child_lets_both_models_answer(
    checkpoint: Checkpoint, doer: TaskDoer, database: Database
) -> None:
    with database.writing() as session:
        job = session.get_one(Job, checkpoint.job_id)
        report = begin_report(session, job, checkpoint.id, ["Hi", "And then?"], now=NOW)

    assert doer.do_next(lambda: None) == 0.0

    done = must_read(database, report.id)
    assert done.status == "succeeded", done.error
    made = AnswerReport.model_validate(done.result, strict=False)
    assert [pair.prompt for pair in made.answers] == ["Hi", "And then?"]
    assert all(pair.base.text != pair.tuned.text for pair in made.answers)


@pytest.mark.only_sqlite
def test_a_child_that_is_killed_is_started_again(
    *,
    task: Task,
    doer: TaskDoer,
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    tmp_path: Path,
) -> None:
    thread = threading.Thread(target=doer.do_next, args=(lambda: None,))
    thread.start()
    children = wait_until(lambda: find_children(settings.data_dir), within_s=LIMIT_S)
    os.kill(children[task.id], signal.SIGKILL)
    thread.join()
    assert (must_read(database, task.id).status, must_read(database, task.id).crashes) == (
        "queued",
        1,
    )

    assert doer.do_next(lambda: None) == 0.0

    check_published(must_read(database, task.id), store, tmp_path / "merged")
    assert not list(settings.work_dir.glob("task_*"))


@pytest.mark.only_sqlite
def test_the_export_of_a_worker_that_is_killed_is_made_by_the_next_one(
    task: Task, settings: Settings, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    with LocalService(settings.data_dir, {"install_default_model": "false"}) as service:
        wait_until(lambda: find_children(settings.data_dir).get(task.id), within_s=LIMIT_S)
        service.processes["worker-1"].kill()
        service.start("worker-1")
        wait_until(lambda: must_read(database, task.id).files, within_s=LIMIT_S)

    done = must_read(database, task.id)
    check_published(done, store, tmp_path / "merged")
    assert done.number == 2
