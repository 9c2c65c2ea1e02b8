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
from app.core.job.child.training_events import Stepped, TrainingEvent
from app.core.job.status import JobStatus
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
from worker.launch.launcher import Ending, Signal, Watcher
from worker.loop import Worker
from worker.membership.machine import MachineWatch, measure_ability
from worker.model_store.shared import keep_in_store
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
    """A `Launcher` that trains where it is called, and stops after some steps or when it is told.

    Args:
        steps: steps after which it stops.
        on_step: called after each step.
    """

    def __init__(self, steps: int, on_step: Callable[[int], None]) -> None:
        self.steps = steps
        self.on_step = on_step

    def preload(self, lock: Path, *, is_busy: Callable[[], bool]) -> None:
        del lock, is_busy

    def run(self, directory: Path, watcher: Watcher) -> Ending:
        taken = 0

        def report(event: TrainingEvent) -> None:
            nonlocal taken
            watcher.on_event(event)
            if isinstance(event, Stepped):
                taken += 1
                self.on_step(taken)

        def must_stop() -> bool:
            return taken >= self.steps or watcher.requested_signal() is Signal.SAVE_AND_STOP

        run_job(directory, report, must_stop)
        return Ending(0, was_asked=must_stop(), was_killed=False, log_tail="")


class Machine:
    """A machine with one worker. The machines have one store.

    Args:
        steps: steps after which it is stopped.
        on_step: called after each step.
        is_bare: whether it lacks the base model and takes it from the store.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        database: Database,
        store: LocalBlobStore,
        *,
        steps: int = 1000,
        on_step: Callable[[int], None] = lambda _: None,
        is_bare: bool = False,
        **ability: Any,
    ) -> None:
        data_dir = settings.data_dir.parent / name
        if is_bare:
            settings = settings.model_copy(update={"store_url": "s3://not-asked"})
        elif not data_dir.exists():
            install_tiny_model(data_dir, source=settings.data_dir.parent / f"tiny-{name}")
        own = settings.model_copy(update={"data_dir": data_dir, "machine": name})
        self.catalogue = load_catalogue(data_dir)
        self.ability: Ability = measure_ability(own, self.catalogue).model_copy(update=ability)
        self.watch = MachineWatch(name, database)
        resources = Resources(
            *(own, database, store, self.catalogue, StoppingAfter(steps, on_step)),
            clock=self.watch.clock,
            ability=self.ability,
        )
        self.worker = Worker(f"worker-{name}", resources, lambda: None, self.watch.drained_s)

    def run_once(self) -> None:
        self.watch.look()
        self.worker.run_once()


class Service:
    """An API, and machines that share its database and its store."""

    def __init__(
        self, client: TestClient, settings: Settings, database: Database, store: LocalBlobStore
    ) -> None:
        self.client = client
        self.database = database
        self.store = store
        self._settings = settings
        content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        form = {"files": {"file": ("a.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        self._file_id = client.post("/v1/files", **form).json()["id"]

    def build(self, name: str, **options: Any) -> Machine:
        return Machine(name, self._settings, self.database, self.store, **options)

    def submit(self) -> str:
        """Create a job with a fixed seed, whose data is checked. Returns its id."""
        hyperparameters = {"n_epochs": 2, "learning_rate": 0.01, "lora_dropout": 0.1}
        body = {"model": "tiny", "training_file": self._file_id, "seed": 1}
        job = self.client.post(JOBS, json=body | {"hyperparameters": hyperparameters}).json()
        pass_checks(self.database, utc_now())
        return job["id"]

    def begin(self) -> str:
        """A job that ml-1 has saved after two steps and given back. Returns its id."""
        job_id = self.submit()
        self.build("ml-1", steps=2).run_once()
        job = self.read(job_id)
        assert (job["status"], job["trained_steps"]) == ("queued", 2)
        return job_id

    def read(self, job_id: str) -> dict[str, Any]:
        return self.client.get(f"{JOBS}/{job_id}").json()

    def drain(self, machine: str) -> None:
        with self.database.writing() as session:
            Drains(session).drain(machine, now=utc_now())

    def weights(self, job_id: str) -> bytes:
        job = self.read(job_id)
        assert job["status"] == "succeeded", job
        query = {"checkpoint": job["result_checkpoint"], "purpose": "fine-tune-results"}
        files = self.client.get("/v1/files", params=query).json()["data"]
        (file_id,) = (file["id"] for file in files if file["filename"] == WEIGHTS)
        return self.client.get(f"/v1/files/{file_id}/content").content

    def expected_weights(self) -> bytes:
        """Those of a job that ml-1 trains without a break."""
        job_id = self.submit()
        self.build("ml-1").run_once()
        return self.weights(job_id)


@pytest.fixture
def service(
    client: TestClient, settings: Settings, database: Database, store: LocalBlobStore
) -> Service:
    return Service(client, settings, database, store)


def test_a_job_moves_exactly_to_an_equal_machine(service: Service, database: Database) -> None:
    expected = service.expected_weights()
    moved = service.begin()

    service.build("ml-2", cores=64, threads=8).run_once()

    assert service.weights(moved) == expected
    plan = StoredPlan.model_validate(get_job(database, moved).plan)
    assert plan.threads == 1
    assert "Fine-tuning job resumed after step 2" in list_messages(database, moved)


def test_it_waits_for_an_equal_machine_and_starts_within_seconds_once_one_joins(
    service: Service, database: Database
) -> None:
    job_id = service.begin()
    other = service.build("ml-2", instructions="avx2 and nothing else")
    with other.worker._presence.keep():  # pyright: ignore[reportPrivateUsage]
        other.run_once()
        waiting = service.read(job_id)
        assert waiting["status"] == "queued"
        assert (
            "on ml-2, differs in instructions (avx2 and nothing else" in waiting["waiting_reason"]
        )
        assert f"tunery resume --inexact {job_id}" in waiting["waiting_reason"]

        equal = service.build("ml-3")
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
    service: Service, database: Database
) -> None:
    job_id = service.begin()
    other = service.build("ml-2", torch="0.0.1")
    other.run_once()
    assert service.read(job_id)["status"] == "queued"

    body = {"allow_inexact_resume": True}
    answer = service.client.post(f"{JOBS}/{job_id}/resume", json=body).json()
    other.run_once()

    assert answer["allow_inexact_resume"]
    assert service.read(job_id)["status"] == "succeeded"
    messages = list_messages(database, job_id)
    assert "The job may go on inexactly if no worker can do so exactly" in messages
    assert any("the job goes on inexactly" in message for message in messages)
    plan = StoredPlan.model_validate(get_job(database, job_id).plan)
    assert plan.environment.torch == "0.0.1"


def test_a_drained_machine_takes_no_job(service: Service) -> None:
    job_id = service.submit()
    service.drain("ml-1")

    service.build("ml-1").run_once()

    assert service.read(job_id)["status"] == "queued"
    shown = service.client.get("/v1/organization/service").json()
    assert shown["drained_machines"] == ["ml-1"]
    service.build("ml-2").run_once()
    assert service.read(job_id)["status"] == "succeeded"


def test_a_machine_that_is_drained_in_a_training_saves_it_and_another_one_goes_on_exactly(
    service: Service, database: Database
) -> None:
    expected = service.expected_weights()
    job_id = service.submit()

    def drain(step: int) -> None:
        if step == 2:
            service.drain("ml-1")
            first.watch.look()  # as its thread does every 2 seconds

    first = service.build("ml-1", on_step=drain)
    first.run_once()

    job = service.read(job_id)
    assert (job["status"], job["trained_steps"]) == ("queued", 2)
    first.run_once()
    assert get_job(database, job_id).attempt == 1, "a drained machine took a job"
    service.build("ml-2").run_once()
    assert service.weights(job_id) == expected
    assert "Fine-tuning job resumed after step 2" in list_messages(database, job_id)


def test_a_fetched_base_model_trains_as_the_installed_one(
    service: Service, database: Database
) -> None:
    expected = service.expected_weights()
    catalogue = service.build("ml-1").catalogue
    installed = catalogue.find_installed("tiny")
    assert installed is not None
    directory = catalogue.directory("tiny")
    keep_in_store(installed, directory, database, service.store, now=utc_now())
    job_id = service.submit()
    bare = service.build("ml-2", is_bare=True)
    assert bare.catalogue.find_installed("tiny") is None

    bare.run_once()

    assert service.weights(job_id) == expected
    assert bare.catalogue.find_installed("tiny") is not None


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
