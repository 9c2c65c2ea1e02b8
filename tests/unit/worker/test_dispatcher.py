"""What a dispatcher claims, puts back and asks for. Ray is a stand-in here: see tests/cluster."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.core.abilities.ability import Ability
from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.placements import Placements, Ticket
from app.core.db.repositories.workers import WorkerRepository, WorkerState
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.errors import LeaseLostError, StoreAwayError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import MINUTE, add_job
from tests.fakes import FakeLauncher
from tests.waiting import wait_until
from worker.attempt.lease_keeper import Resources
from worker.dispatch import dispatcher as module
from worker.dispatch.connection import RayAwayError
from worker.dispatch.dispatcher import Dispatcher
from worker.presence import this_worker

GB = 1_000_000_000
ABILITY = Ability(
    machine="node-1",
    cores=4,
    threads=2,
    memory_bytes=8 * GB,
    processor="x86_64",
    instructions="avx2",
    torch="2",
    transformers="5",
    peft="0",
    numerics=1,
)


@dataclass
class FakeRay:
    """Stands in for a `RayConnection`."""

    cpus: int = 4
    memory_bytes: int = 8 * GB
    state: str = "PENDING_CREATION"
    is_away: bool = False
    session: str = "session"
    launched: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    killed: list[str] = field(default_factory=list[str])
    demands: list[list[dict[str, float]]] = field(default_factory=list[list[dict[str, float]]])

    def ask(self, call: str, **arguments: Any) -> Any:
        if self.is_away:
            raise RayAwayError("it does not answer")
        match call:
            case "nodes":
                node = {"id": "n1", "address": "10.0.0.1", "cpus": self.cpus, "gpus": 0}
                told = {"ability": ABILITY.model_dump_json(), "problem": ""}
                return [node | told | {"memory_bytes": self.memory_bytes}]
            case "launch":
                if arguments["name"] in self.launched:
                    return None
                self.launched[arguments["name"]] = arguments
                return f"id-of-{arguments['name']}"
            case "check":
                return {"state": self.state, "why": ""}
            case "kill":
                self.killed.append(arguments["name"])
            case "demand":
                self.demands.append(arguments["bundles"])
        return None


class FullRay(FakeRay):
    """Has few processors, says late which of them are free, and refuses what has no room.

    A job ends when it is asked for its nodes the second time after the job has begun.
    """

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database
        self._lock = threading.Lock()
        self._free = self._told = self.cpus
        self._new: list[Ticket] = []
        self._old: list[Ticket] = []
        self.refused: set[str] = set()
        self.ran: list[str] = []

    def ask(self, call: str, **arguments: Any) -> Any:
        with self._lock:
            match call:
                case "nodes":
                    self.cpus, self._told = self._told, self._free
                    self._end_old()
                case "launch" if arguments["cpus"] > self._free:
                    self.refused.add(f"id-of-{arguments['name']}")
                case "launch":
                    self._begin(Ticket.model_validate_json(arguments["ticket"]))
                case "check" if arguments["actor_id"] in self.refused:
                    return {"state": "DEAD", "why": "there is no room"}
                case _:
                    pass
            return super().ask(call, **arguments)

    def _begin(self, ticket: Ticket) -> None:
        with self._database.writing() as session:
            Placements(session).take_over(ticket, until=utc_now() + MINUTE)
            WorkerRepository(session).beat(this_worker(ticket.worker_id), now=utc_now())
        self._free -= ABILITY.threads
        self._new.append(ticket)
        self.ran.append(ticket.job_id)

    def _end_old(self) -> None:
        for ticket in self._old:
            with self._database.writing() as session:
                end(session.get(Job, ticket.job_id))
            self._free += ABILITY.threads
        self._old, self._new = self._new, []


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def resources(settings: Settings, database: Database, store: LocalBlobStore) -> Resources:
    catalogue = load_catalogue(settings.data_dir)
    return Resources(settings, database, store, catalogue, FakeLauncher())


def dispatcher_of(resources: Resources, ray: FakeRay, worker_id: str = "worker-d") -> Dispatcher:
    return Dispatcher(worker_id, resources, ray)  # pyright: ignore[reportArgumentType]


def dispatch(dispatcher: Dispatcher) -> None:
    dispatcher.dispatch(lambda: None)


def read(database: Database, job: Job) -> Job:
    with database.reading() as session:
        return JobRepository(session, DEFAULT_PROJECT_ID).get(job.id)


def end(job: Job | None) -> None:
    assert job is not None
    job.status, job.finished_at = JobStatus.CANCELLED, utc_now()
    job.worker_id = job.lease_expires_at = None


def test_only_as_many_jobs_are_claimed_as_there_is_room_for(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    jobs = [add_job(database) for _ in range(3)]

    dispatch(dispatcher_of(resources, ray))

    statuses = [read(database, job).status for job in jobs]
    assert statuses == [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.QUEUED]
    assert [one["cpus"] for one in ray.launched.values()] == [2, 2]
    assert set(ray.launched) == {f"attempt-{job.id}-1" for job in jobs[:2]}


def test_a_job_that_needs_more_memory_than_is_free_waits(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    large = add_job(database, needed_memory_bytes=6 * GB)
    small = add_job(database, needed_memory_bytes=2 * GB)
    ray.memory_bytes = 4 * GB

    dispatch(dispatcher_of(resources, ray))

    assert read(database, large).status is JobStatus.QUEUED
    assert ray.launched[f"attempt-{small.id}-1"]["memory_bytes"] == 2 * GB


def test_two_dispatchers_launch_a_job_once(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    job = add_job(database)
    both = [dispatcher_of(resources, ray, f"worker-{name}") for name in "ab"]

    for dispatcher in (*both, *both):
        dispatch(dispatcher)

    assert set(ray.launched) == {f"attempt-{job.id}-1"}


def test_two_dispatchers_share_a_cluster_that_has_too_little_room(
    resources: Resources, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BENCH_S", 0.0)
    ray = FullRay(database)
    jobs = [add_job(database) for _ in range(12)]
    is_over = threading.Event()

    def run(name: str) -> None:
        dispatcher = dispatcher_of(resources, ray, f"worker-{name}")
        while not is_over.is_set():
            dispatch(dispatcher)

    both = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in both:
        thread.start()
    try:
        wait_until(
            lambda: all(read(database, job).status is JobStatus.CANCELLED for job in jobs),
            within_s=60,
        )
    finally:
        is_over.set()
        for thread in both:
            thread.join()

    assert sorted(ray.ran) == sorted(job.id for job in jobs)
    assert [read(database, job).crashes for job in jobs] == [0] * len(jobs)
    assert len(ray.launched) == len(jobs) + len(ray.refused)
    assert ray.refused, "there was room for all at any time"


def test_nothing_is_claimed_while_the_store_is_away(
    resources: Resources,
    database: Database,
    store: LocalBlobStore,
    ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, dispatcher = add_job(database), dispatcher_of(resources, ray)

    def refuse(_key: str) -> None:
        raise StoreAwayError(for_operator="The blob store s3://b/p cannot be used: reset.")

    with monkeypatch.context() as away:
        away.setattr(store, "open", refuse)
        with pytest.raises(StoreAwayError):
            dispatch(dispatcher)
    assert (read(database, job).status, ray.launched) == (JobStatus.QUEUED, {})

    dispatch(dispatcher)
    assert read(database, job).status is JobStatus.RUNNING


def test_a_drained_node_is_empty_once_no_attempt_is_on_its_way(
    resources: Resources, database: Database, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tunery drain` waits until the rows of the machine say so."""
    monkeypatch.setattr(module, "HEARTBEAT_INTERVAL_S", 0.0)
    add_job(database)
    dispatcher = dispatcher_of(resources, ray)
    states: list[WorkerState] = []

    def look() -> None:
        dispatch(dispatcher)
        with database.reading() as session:
            workers = WorkerRepository(session).list_all()
        states.append(next(one.state for one in workers if one.machine == ABILITY.machine))

    look()
    with database.writing() as session:
        Drains(session).drain(ABILITY.machine, now=utc_now())
    look()
    (launched,) = ray.launched.values()
    with database.writing() as session:
        ticket = Ticket.model_validate_json(launched["ticket"])
        Placements(session).take_over(ticket, until=utc_now() + MINUTE)
        WorkerRepository(session).beat(this_worker(ticket.worker_id), now=utc_now())
    look()

    assert states == [WorkerState.IDLE, WorkerState.IDLE, WorkerState.DRAINING]


@pytest.mark.parametrize("fate", ["late", "dead"])
def test_what_ray_does_not_start_goes_back_and_counts_nothing(
    resources: Resources,
    database: Database,
    ray: FakeRay,
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    job, dispatcher = add_job(database), dispatcher_of(resources, ray)
    if fate == "late":
        monkeypatch.setattr(module, "PLACE_S", 0.0)
    dispatch(dispatcher)
    ray.state = "DEAD" if fate == "dead" else ray.state

    dispatch(dispatcher)

    back = read(database, job)
    assert (back.status, back.crashes, back.interruptions) == (JobStatus.QUEUED, 0, 0)
    assert ray.killed == [f"attempt-{job.id}-1"]
    dispatch(dispatcher)
    assert len(ray.launched) == 1, "the node has not started it, and is left alone for a while"


@pytest.mark.parametrize("is_away", [True, False])
def test_unknown_is_not_read_as_dead(
    resources: Resources, database: Database, ray: FakeRay, *, is_away: bool
) -> None:
    job, dispatcher = add_job(database), dispatcher_of(resources, ray)
    dispatch(dispatcher)
    ray.is_away, ray.session, ray.state = is_away, "of another head", "DEAD"

    dispatch(dispatcher)

    assert read(database, job).status is JobStatus.RUNNING
    assert ray.killed == []


def test_a_job_that_was_taken_over_is_left_alone(
    resources: Resources, database: Database, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLACE_S", 0.0)
    job, dispatcher = add_job(database), dispatcher_of(resources, ray)
    dispatch(dispatcher)
    ticket = Ticket.model_validate_json(ray.launched[f"attempt-{job.id}-1"]["ticket"])

    def take_over() -> None:
        with database.writing() as session:
            lease = Placements(session).take_over(ticket, until=utc_now() + MINUTE)
            WorkerRepository(session).beat(this_worker(lease.worker_id), now=utc_now())

    take_over()
    dispatch(dispatcher)

    assert read(database, job).status is JobStatus.RUNNING
    assert ray.killed == []
    with pytest.raises(LeaseLostError):  # a second process of the same attempt
        take_over()


def test_one_of_two_processes_takes_an_attempt_over(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    job = add_job(database)
    dispatch(dispatcher_of(resources, ray))
    ticket = Ticket.model_validate_json(ray.launched[f"attempt-{job.id}-1"]["ticket"])

    def take_over(is_written: threading.Event, may_commit: threading.Event) -> None:
        with database.writing() as session:
            lease = Placements(session).take_over(ticket, until=utc_now() + MINUTE)
            WorkerRepository(session).beat(this_worker(lease.worker_id), now=utc_now())
            session.flush()
            is_written.set()
            may_commit.wait(30)

    is_written, may_commit = threading.Event(), threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(take_over, is_written, may_commit)
        assert is_written.wait(30)
        second = pool.submit(take_over, threading.Event(), may_commit)
        time.sleep(0.5)  # it waits for the first transaction by then
        may_commit.set()
        first.result(30)
        with pytest.raises(LeaseLostError):
            second.result(30)


def test_demand_is_told_for_what_runs_and_waits_and_is_withdrawn(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    ray.cpus = 0
    job = add_job(database, needed_memory_bytes=3 * GB)
    dispatcher = dispatcher_of(resources, ray)
    threads = resources.settings.resolved_training_threads

    dispatch(dispatcher)
    with database.writing() as session:
        end(session.get(Job, job.id))
    dispatch(dispatcher)
    dispatch(dispatcher)

    assert ray.demands == [[{"CPU": float(threads), "memory": 3.0 * GB}], []]


def test_demand_that_another_dispatcher_has_left_is_withdrawn(
    resources: Resources, ray: FakeRay
) -> None:
    dispatch(dispatcher_of(resources, ray))

    assert ray.demands == [[]]


def test_each_node_is_in_the_table_of_workers(
    resources: Resources, database: Database, ray: FakeRay
) -> None:
    dispatch(dispatcher_of(resources, ray))

    with database.reading() as session:
        (row,) = WorkerRepository(session).list_all()
    assert (row.machine, row.ability) == ("node-1", ABILITY.model_copy(update={"machine": ""}))
