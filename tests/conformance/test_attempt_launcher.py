"""What every launcher of attempts must do: that of this machine, and that of a Ray cluster."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.db.migrate import upgrade
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.signing.keys import SigningKeys
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, build_config, build_job, write_catalogue
from tests.chaos.history import check_job
from tests.chaos.worker import let_children_lock
from tests.cluster.ray_cluster import RayCluster, require_ray
from tests.waiting import wait_until
from worker.attempt.lease_keeper import Resources
from worker.dispatch.attempt_launcher import (
    AlreadyLaunchedError,
    AttemptLauncher,
    Health,
    Place,
)
from worker.dispatch.connection import RayConnection
from worker.dispatch.local_attempts import LocalAttempts
from worker.dispatch.ray_attempts import RayAttempts
from worker.launch.launcher import Signal
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import LocalLauncher

pytestmark = [pytest.mark.only_sqlite, pytest.mark.timeout(300)]

LEASE_S = 600
"""So long that nothing here ends because of it."""
SLOW_STEPS, QUICK_STEPS = 2000, 30
WITHIN_S = 60
MEMORY = 1_000_000_000


@dataclass
class World:
    """A database, a store and a launcher."""

    database: Database
    store: LocalBlobStore
    launcher: AttemptLauncher[Any]
    place: Place
    cluster: RayCluster | None = None

    def add_job(self, steps: int) -> tuple[Lease, bytes]:
        """A job of so many steps, claimed. Returns its data as well."""
        data = json.dumps({"text": f"for {steps} steps at {utc_now()}"}).encode() + b"\n"
        file = add_file(self.database, self.store, data)
        config = build_config(max_steps=steps, checkpoint_steps=1000).model_dump(mode="json")
        with self.database.writing() as session:
            session.add(build_job(training_file_id=file.id, config=config, created_at=utc_now()))
        lease = self.claim()
        assert lease.training_file_id == file.id, "a test has left its job in the queue"
        return lease, data

    def claim(self) -> Lease:
        with self.database.writing() as session:
            lease = LeaseRepository(session).claim(
                f"worker-{utc_now()}", now=utc_now(), lease_for=timedelta(seconds=LEASE_S)
            )
        assert lease is not None
        return lease

    def job(self, lease: Lease) -> Job:
        with self.database.reading() as session:
            return JobRepository(session, DEFAULT_PROJECT_ID).get(lease.job_id)

    def await_steps(self, lease: Lease) -> None:
        wait_until(lambda: self.job(lease).trained_steps > 20, within_s=WITHIN_S)

    def await_health(self, handle: object, health: Health) -> None:
        wait_until(lambda: self.launcher.check(handle) is health, within_s=WITHIN_S)

    def has_room(self) -> bool:
        """Whether a Ray node counts all of its processors as free."""
        if self.cluster is None:
            return True
        assert isinstance(self.launcher, RayAttempts)
        (node,) = self.launcher._connection.ask("nodes")
        return node["cpus"] == 1


@pytest.fixture(scope="module")
def place_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a database, keys and a base model."""
    data_dir = tmp_path_factory.mktemp("launchers")
    write_catalogue(data_dir)
    SigningKeys(data_dir / "signing").ensure()
    database = Database(f"sqlite:///{data_dir / 'tunery.db'}")
    upgrade(database)
    database.dispose()
    return data_dir


@pytest.fixture(scope="module", params=["local", "ray"])
def world(request: pytest.FixtureRequest, place_dir: Path) -> Iterator[World]:
    settings = Settings(
        _env_file=None,  # pyright: ignore[reportCallIssue] - pydantic-settings takes it
        data_dir=place_dir,
        lease_s=LEASE_S,
        training_threads=1,
        stop_grace_s=20,
    )
    database = Database(settings.resolved_database_url)
    store = LocalBlobStore(settings.blobs_dir)
    with ExitStack() as stack:
        stack.callback(database.dispose)
        if request.param == "local":
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(Sandbox, "confine", Sandbox.confine)  # put back in the end
            let_children_lock()
            trainer = LocalLauncher("tests.chaos.stand_in_trainer")
            patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
            resources = Resources(settings, database, store, load_catalogue(place_dir), trainer)
            yield World(database, store, LocalAttempts(resources), Place(1, MEMORY))
            return
        require_ray()
        node_dir = place_dir.with_name("node")
        write_catalogue(node_dir)
        shutil.copytree(place_dir / "signing", node_dir / "signing")
        environment = {
            "TUNERY_DATA_DIR": str(node_dir),
            "TUNERY_DATABASE_URL": settings.resolved_database_url,
            "TUNERY_STORE_URL": f"file://{settings.blobs_dir}",
            "TUNERY_TRAINING_THREADS": "1",
            "TUNERY_LEASE_S": str(LEASE_S),
        }
        cluster = stack.enter_context(RayCluster({"node": environment}, log_dir=place_dir))
        connection = RayConnection(cluster.address, "tests.cluster.node")
        stack.callback(connection.close)
        (node,) = wait_until(lambda: connection.ask("nodes"), within_s=WITHIN_S)
        place = Place(1, MEMORY, 0, node["id"])
        yield World(database, store, RayAttempts(connection), place, cluster)


def check_result(world: World, lease: Lease, data: bytes) -> list[str]:
    with world.database.reading() as session:
        job = JobRepository(session, DEFAULT_PROJECT_ID).get(lease.job_id)
        return check_job(session, world.store, job, data)


def test_an_attempt_runs_to_its_end_and_leaves_nothing(world: World) -> None:
    lease, data = world.add_job(QUICK_STEPS)

    handle = world.launcher.launch(lease, world.place)

    assert world.launcher.check(handle) is Health.RUNNING
    world.await_health(handle, Health.GONE)
    assert check_result(world, lease, data) == []
    wait_until(world.has_room, within_s=WITHIN_S)
    world.launcher.release(handle)
    world.launcher.signal(handle, Signal.SAVE_AND_STOP)
    assert world.launcher.check(handle) is Health.GONE


def test_an_attempt_is_launched_only_once(world: World) -> None:
    lease, _ = world.add_job(SLOW_STEPS)
    handle = world.launcher.launch(lease, world.place)

    with pytest.raises(AlreadyLaunchedError):
        world.launcher.launch(lease, world.place)

    world.await_steps(lease)
    world.launcher.release(handle)
    world.await_health(handle, Health.GONE)
    wait_until(world.has_room, within_s=WITHIN_S)
    _cancel(world, lease)


@pytest.mark.parametrize("world", ["ray"], indirect=True)
def test_an_attempt_without_room_does_not_wait_for_it(world: World) -> None:
    """Only a cluster has an end to its room."""
    assert world.cluster is not None
    lease, _ = world.add_job(10 * SLOW_STEPS)
    first = world.launcher.launch(lease, world.place)
    world.await_steps(lease)
    other, _ = world.add_job(QUICK_STEPS)

    world.await_health(world.launcher.launch(other, world.place), Health.GONE)

    assert world.launcher.check(first) is Health.RUNNING
    assert world.job(other).trained_steps == 0
    world.launcher.release(first)
    wait_until(world.has_room, within_s=WITHIN_S)
    _cancel(world, lease)
    _cancel(world, other)


def test_an_attempt_that_is_asked_to_saves_and_gives_its_job_back(world: World) -> None:
    lease, _ = world.add_job(SLOW_STEPS)
    handle = world.launcher.launch(lease, world.place)
    world.await_steps(lease)

    world.launcher.signal(handle, Signal.SAVE_AND_STOP)

    world.await_health(handle, Health.GONE)
    job = world.job(lease)
    assert (job.status, job.interruptions, job.crashes) == (JobStatus.QUEUED, 0, 0)
    _cancel(world, lease)


def test_a_killed_attempt_is_gone_and_the_next_one_resumes_exactly(world: World) -> None:
    lease, data = world.add_job(300)
    handle = world.launcher.launch(lease, world.place)
    world.await_steps(lease)

    world.launcher.signal(handle, Signal.KILL)

    world.await_health(handle, Health.GONE)
    later = utc_now() + timedelta(seconds=2 * LEASE_S)
    with world.database.writing() as session:
        RecoveryRepository(session).rescue_expired(now=later)
    wait_until(world.has_room, within_s=WITHIN_S)
    again = world.claim()
    assert (again.job_id, again.attempt) == (lease.job_id, 2)
    world.await_health(world.launcher.launch(again, world.place), Health.GONE)
    assert check_result(world, again, data) == []


def test_an_attempt_whose_lease_is_lost_ends_by_itself(world: World) -> None:
    lease, _ = world.add_job(SLOW_STEPS)
    handle = world.launcher.launch(lease, world.place)
    world.await_steps(lease)

    _cancel(world, lease)

    world.await_health(handle, Health.GONE)


def test_an_attempt_whose_lease_was_lost_before_it_began_ends_by_itself(world: World) -> None:
    lease, _ = world.add_job(SLOW_STEPS)
    _cancel(world, lease)

    handle = world.launcher.launch(lease, world.place)

    world.await_health(handle, Health.GONE)
    assert world.job(lease).trained_steps == 0


@pytest.mark.parametrize("world", ["ray"], indirect=True)
def test_nobody_knows_of_an_attempt_when_the_head_is_lost(world: World) -> None:
    """Only a cluster has one. Another head knows nothing of it either."""
    assert world.cluster is not None
    lease, _ = world.add_job(10 * SLOW_STEPS)
    handle = world.launcher.launch(lease, world.place)
    world.await_steps(lease)

    assert world.cluster.kill("head")

    assert world.launcher.check(handle) is Health.UNKNOWN
    world.launcher.signal(handle, Signal.KILL)
    assert world.job(lease).status is JobStatus.RUNNING
    world.cluster.restore()
    assert wait_until(lambda: world.launcher.check(handle), within_s=WITHIN_S) is Health.UNKNOWN


def _cancel(world: World, lease: Lease) -> None:
    """End the job, so that no later test claims it."""
    with world.database.writing() as session:
        job = session.get(Job, lease.job_id)
        assert job is not None
        job.status, job.finished_at = JobStatus.CANCELLED, utc_now()
        job.worker_id = job.lease_expires_at = None
