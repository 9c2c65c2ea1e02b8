"""Two machines, each with its own data directory, share a database and a store.

They train for real, with the tiny model. What differs between them is told by their abilities.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from app.core.abilities.ability import Ability, StoredPlan
from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.server_clock import ServerClock
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import WorkerIdentity, WorkerRepository
from app.core.db.session import Database
from app.core.errors import LeaseLostError
from app.core.job.status import JobStatus
from app.core.job.training_events import Stepped, TrainingEvent
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.maintenance import metrics
from app.maintenance.check_database import check_jobs, check_tasks, check_workers
from app.maintenance.findings import Level, Patient
from benchmarks.support.postgres import PostgresServer
from tests.adapters import WEIGHTS
from tests.builders import MINUTE, add_job, get_job, list_messages, pass_checks
from tests.tiny import chat_row, install_tiny_model
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending, Watcher
from worker.loop import Worker
from worker.membership.machine import MachineWatch, measure_ability
from worker.training.recipe import run_job

logger = logging.getLogger(__name__)

JOBS = "/v1/fine_tuning/jobs"
ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    install_tiny_model(directory, source=tmp_path / "tiny")
    return directory


class StoppingAfter:
    """A `Launcher` that trains where it is called, and stops after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        del lock, is_busy

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        taken = 0

        def report(event: TrainingEvent) -> None:
            nonlocal taken
            taken += isinstance(event, Stepped)
            watcher.on_event(event)

        run_job(directory, report, lambda: taken >= self.steps)
        return Ending(0, was_asked=taken >= self.steps, was_killed=False, log_tail="")


class Machine:
    """A machine with one worker. The machines have one store."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        database: Database,
        store: LocalBlobStore,
        *,
        steps: int = 1000,
        **ability: Any,
    ) -> None:
        data_dir = settings.data_dir.parent / name
        if not data_dir.exists():
            install_tiny_model(data_dir, source=settings.data_dir.parent / f"tiny-{name}")
        own = settings.model_copy(update={"data_dir": data_dir, "machine": name})
        catalogue = load_catalogue(data_dir)
        self.ability: Ability = measure_ability(own, catalogue).model_copy(update=ability)
        self.watch = MachineWatch(name, database)
        resources = Resources(
            *(own, database, store, catalogue, StoppingAfter(steps)),
            clock=self.watch.clock,
            ability=self.ability,
        )
        self.worker = Worker(f"worker-{name}", resources, lambda: None, self.watch.drained_s)

    def run_once(self) -> None:
        self.watch.look()
        self.worker.run_once()


@pytest.fixture
def build(settings: Settings, database: Database, store: LocalBlobStore) -> Callable[..., Machine]:
    def build(name: str, **options: Any) -> Machine:
        return Machine(name, settings, database, store, **options)

    return build


@pytest.fixture
def submit(client: TestClient, database: Database) -> Callable[..., str]:
    """Creates a job with a fixed seed, whose data is checked. Returns its id."""
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    form = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    file_id = client.post("/v1/files", **form).json()["id"]

    def submit(**options: Any) -> str:
        hyperparameters = {"n_epochs": 2, "learning_rate": 0.01, "lora_dropout": 0.1}
        body = {"model": "tiny", "training_file": file_id, "seed": 1}
        job = client.post(JOBS, json=body | {"hyperparameters": hyperparameters} | options).json()
        pass_checks(database, utc_now())
        return job["id"]

    return submit


def read(client: TestClient, job_id: str) -> dict[str, Any]:
    return client.get(f"{JOBS}/{job_id}").json()


def weights(client: TestClient, job_id: str) -> bytes:
    job = read(client, job_id)
    assert job["status"] == "succeeded", job
    query = {"checkpoint": job["result_checkpoint"], "purpose": "fine-tune-results"}
    files = client.get("/v1/files", params=query).json()["data"]
    (file_id,) = (file["id"] for file in files if file["filename"] == WEIGHTS)
    return client.get(f"/v1/files/{file_id}/content").content


def test_a_job_moves_exactly_to_an_equal_machine(
    client: TestClient,
    database: Database,
    build: Callable[..., Machine],
    submit: Callable[..., str],
) -> None:
    reference = submit()
    build("ml-1").run_once()
    moved = submit()
    build("ml-1", steps=2).run_once()

    assert (read(client, moved)["status"], read(client, moved)["trained_steps"]) == ("queued", 2)
    build("ml-2", cores=64, threads=8).run_once()

    assert weights(client, moved) == weights(client, reference)
    plan = StoredPlan.model_validate(get_job(database, moved).plan)
    assert plan.threads == 1
    assert "Fine-tuning job resumed after step 2" in list_messages(database, moved)


def test_it_waits_for_an_equal_machine_and_starts_within_seconds_once_one_joins(
    client: TestClient,
    database: Database,
    build: Callable[..., Machine],
    submit: Callable[..., str],
) -> None:
    job_id = submit()
    build("ml-1", steps=2).run_once()
    other = build("ml-2", instructions="avx2 and nothing else")
    with other.worker._presence.keep():  # pyright: ignore[reportPrivateUsage]
        other.run_once()
        waiting = read(client, job_id)
        assert waiting["status"] == "queued"
        assert (
            "on ml-2, differs in instructions (avx2 and nothing else" in waiting["waiting_reason"]
        )
        assert f"tunery resume --inexact {job_id}" in waiting["waiting_reason"]

        equal = build("ml-3")
        thread = threading.Thread(target=equal.worker.run)
        joined_s = time.monotonic()
        thread.start()
        while get_job(database, job_id).attempt < 2:
            assert time.monotonic() < joined_s + 5
            time.sleep(0.01)
        logger.info("started %.2f s after an equal machine joined", time.monotonic() - joined_s)
        while get_job(database, job_id).status is not JobStatus.SUCCEEDED:
            assert time.monotonic() < joined_s + 60
            time.sleep(0.05)
        equal.worker.stop()
        thread.join()


def test_it_goes_on_inexactly_where_its_user_allows_that(
    client: TestClient,
    database: Database,
    build: Callable[..., Machine],
    submit: Callable[..., str],
) -> None:
    job_id = submit()
    build("ml-1", steps=2).run_once()
    other = build("ml-2", torch="0.0.1")
    other.run_once()
    assert read(client, job_id)["status"] == "queued"

    answer = client.post(f"{JOBS}/{job_id}/resume", json={"allow_inexact_resume": True}).json()
    other.run_once()

    assert answer["allow_inexact_resume"]
    assert read(client, job_id)["status"] == "succeeded"
    messages = list_messages(database, job_id)
    assert "The job may go on inexactly if no worker can do so exactly" in messages
    assert any("the job goes on inexactly" in message for message in messages)
    plan = StoredPlan.model_validate(get_job(database, job_id).plan)
    assert plan.environment.torch == "0.0.1"


def test_a_drained_machine_gives_its_job_back_for_others(
    client: TestClient,
    database: Database,
    build: Callable[..., Machine],
    submit: Callable[..., str],
) -> None:
    job_id = submit()
    first = build("ml-1")
    with database.writing() as session:
        Drains(session).drain("ml-1", now=utc_now())
    first.run_once()
    assert read(client, job_id)["status"] == "queued"
    service = client.get("/v1/organization/service").json()
    assert service["drained_machines"] == ["ml-1"]

    build("ml-2").run_once()

    assert read(client, job_id)["status"] == "succeeded"


def test_the_fence_holds_with_any_clock_and_the_servers_clock_needs_no_fence(
    database: Database,
) -> None:
    """A janitor whose clock is an hour ahead takes a live job. Its worker can no longer write."""
    job = add_job(database)
    with database.writing() as session:
        lease = LeaseRepository(session).claim("worker-1", now=utc_now(), lease_for=MINUTE)
    assert lease is not None

    wrong = ServerClock(local=lambda: utc_now() + timedelta(hours=1))
    with database.reading() as session:
        wrong.synchronize(session)
    with database.writing() as session:
        rescued = RecoveryRepository(session).rescue_expired(now=wrong())
    if database.backend.kind == "postgresql":
        assert rescued == []  # it went by the time of the server
        with database.writing() as session:
            RecoveryRepository(session).rescue_expired(now=utc_now() + timedelta(hours=1))

    assert get_job(database, job.id).status is JobStatus.QUEUED
    for hours in (-1, 0, 1):
        until = utc_now() + timedelta(hours=hours)
        with pytest.raises(LeaseLostError), database.writing() as session:
            LeaseRepository(session).renew(lease, until=until)


def test_a_clock_that_is_wrong_makes_no_worker_silent_and_no_lease_expired(
    postgres: PostgresServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = utc_now() + timedelta(hours=1)
    monkeypatch.setattr(metrics, "utc_now", lambda: wrong)
    with postgres.database() as url:
        database = Database(url)
        job = add_job(database)
        with database.writing() as session:
            WorkerRepository(session).beat(WorkerIdentity("worker-1", "", 1, 1), now=utc_now())
            LeaseRepository(session).claim("worker-1", now=utc_now(), lease_for=MINUTE)
        store = LocalBlobStore(settings.blobs_dir)
        patient = Patient(settings, database, store, now=wrong, may_repair=True)
        findings = [*check_jobs(patient), *check_tasks(patient), *check_workers(patient)]
        registry = CollectorRegistry()
        registry.register(metrics.ServiceCollector(settings, database))
        status = get_job(database, job.id).status
        states = {state: registry.get_sample_value("tunery_workers", {"state": state})
                  for state in ("running", "silent")}  # fmt: skip
        database.dispose()

    assert status is JobStatus.RUNNING, "doctor has put back a job that runs"
    assert findings[-1].message == "1 alive: 1 running"
    assert {finding.level for finding in findings} == {Level.OK}
    assert states == {"running": 1, "silent": 0}
