"""What trackers get of a job, and that one which fails costs the job nothing."""

import os
import socket
import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.job.child.training_events import Failed, Started, Stepped
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_file, add_job, build_metrics, claim, get_job
from tests.fakes import FakeLauncher, FrozenClock
from tests.waiting import wait_until
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.trackers.__main__ import _explain
from worker.trackers.feed import feeding
from worker.trackers.messages import Access
from worker.trackers.process import TrackerProcess

WAIT_S = 60.0
"""More than starting MLflow and creating its database take on a busy machine."""

TOKEN = "token-of-the-operator"  # noqa: S105 - made up


class Mlflow:
    """A real tracking store, read as MLflow has stored it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.directory = path.parent
        self.uri = f"sqlite:///{path}"

    def query(self, sql: str, *values: str) -> list[Any]:
        """Rows of the store. None while MLflow makes its tables."""
        with closing(sqlite3.connect(self._path)) as connection, suppress(sqlite3.OperationalError):
            return connection.execute(sql, values).fetchall()
        return []

    def runs(self, job_id: str) -> list[Any]:
        """Experiment, name and status of each run of a job."""
        return self.query(
            "SELECT experiments.name, runs.name, runs.status FROM runs "
            "JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid) "
            "WHERE tags.key = 'tunery.job_id' AND tags.value = ?",
            job_id,
        )

    def steps(self, job_id: str, metric: str = "train_loss") -> list[int]:
        rows = self.query(
            "SELECT step FROM metrics JOIN tags USING (run_uuid) "
            "WHERE tags.key = 'tunery.job_id' AND tags.value = ? AND metrics.key = ? ORDER BY step",
            job_id,
            metric,
        )
        return [step for (step,) in rows]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Mlflow:
    return Mlflow(tmp_path_factory.mktemp("mlflow") / "mlflow.db")


@pytest.fixture
def reachable(settings: Settings, mlflow: Mlflow) -> Settings:
    return settings.model_copy(update={"mlflow_tracking_uri": mlflow.uri})


def add_tracked_job(database: Database, **changes: Any) -> str:
    integrations = [{"type": "mlflow", "mlflow": {"experiment": "support"}}]
    return add_job(database, integrations=integrations, **changes).id


def record(database: Database, lease: Lease, first: int, last: int) -> None:
    rows = [build_metrics(step) for step in range(first, last + 1)]
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )


def finish(database: Database, lease: Lease) -> None:
    with database.writing() as session:
        LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=NOW)


def told(database: Database, job_id: str, level: str) -> list[str]:
    with database.reading() as session:
        page = EventRepository(session, DEFAULT_PROJECT_ID).list_page(job_id, after=None, limit=50)
    return [event.message for event in reversed(page.rows) if event.level == level]


@contextmanager
def fed(
    lease: Lease, database: Database, settings: Settings, linger_s: float = WAIT_S
) -> Generator[None]:
    """Feed while the block runs, and wait until the feed has ended."""
    with feeding(lease, database, settings, FrozenClock(), linger_s=linger_s) as threads:
        yield
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.mark.only_sqlite
def test_an_attempt_sends_its_steps_and_how_the_job_has_ended(
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    reachable: Settings,
    mlflow: Mlflow,
) -> None:
    job_id = add_tracked_job(database, training_file_id=add_file(database, store).id)
    steps = [Stepped(metrics=build_metrics(step, valid_loss=2.0)) for step in (1, 2)]
    evaluation = StepMetrics(step=0, epoch=0, valid_loss=3.0, tokens_seen=0, elapsed_s=0)
    acts = [
        Started(total_steps=2),
        Stepped(metrics=evaluation),
        *steps,
        lambda _: wait_until(lambda: mlflow.steps(job_id), within_s=WAIT_S) and None,
        Failed(code="out_of_memory", message="It is full."),
    ]
    resources = Resources(reachable, database, store, catalogue, FakeLauncher(acts), FrozenClock())

    Attempt(claim(database), resources).run()

    run = ("support", job_id, "FAILED")
    wait_until(lambda: mlflow.runs(job_id) == [run], within_s=WAIT_S)
    assert mlflow.steps(job_id) == [1, 2]
    assert mlflow.steps(job_id, "valid_loss") == [0, 1, 2]
    parameters = dict(mlflow.query("SELECT key, value FROM params"))
    assert (parameters["base_model"], parameters["lora.rank"]) == ("tiny", "64")
    sent = f"Metrics are sent to MLflow, run {job_id} in the experiment support"
    assert sent in told(database, job_id, "info")
    assert told(database, job_id, "warn") == []


# On both databases; the other tests make the same queries.
def test_a_later_attempt_continues_the_run_and_sends_no_step_twice(
    database: Database, reachable: Settings, mlflow: Mlflow
) -> None:
    job_id = add_tracked_job(database)
    first = claim(database)
    with fed(first, database, reachable):
        record(database, first, 1, 250)
        wait_until(lambda: mlflow.steps(job_id)[-1:] == [250], within_s=WAIT_S)
        with database.writing() as session:
            RecoveryRepository(session).release(first, "The worker was stopped", now=NOW)
    assert mlflow.runs(job_id) == [("support", job_id, "RUNNING")]

    second = claim(database)
    with fed(second, database, reachable):
        with database.writing() as session:
            LeaseRepository(session).begin(second, after_step=240, now=NOW)
        record(database, second, 241, 260)
        wait_until(lambda: mlflow.steps(job_id)[-1:] == [260], within_s=WAIT_S)
        finish(database, second)

    assert mlflow.steps(job_id) == list(range(1, 261))
    assert mlflow.runs(job_id) == [("support", job_id, "KILLED")]


@pytest.mark.only_sqlite
def test_a_tracker_that_comes_back_gets_every_step(
    database: Database, settings: Settings, mlflow: Mlflow, tmp_path: Path
) -> None:
    job_id = add_tracked_job(database)
    lease = claim(database)
    place = tmp_path / "place"
    place.write_text("not a directory")
    later = settings.model_copy(update={"mlflow_tracking_uri": f"sqlite:///{place}/mlflow.db"})
    with fed(lease, database, later):
        record(database, lease, 1, 5)
        wait_until(lambda: told(database, job_id, "warn"), within_s=WAIT_S)
        place.unlink()
        place.symlink_to(mlflow.directory)
        wait_until(lambda: mlflow.steps(job_id) == [1, 2, 3, 4, 5], within_s=WAIT_S)
        finish(database, lease)

    assert mlflow.runs(job_id) == [("support", job_id, "KILLED")]
    (warning,) = told(database, job_id, "warn")
    assert warning.startswith(
        "MLflow cannot be used: FileExistsError. The training is not affected"
    )


@pytest.mark.only_sqlite
def test_an_attempt_sends_what_an_earlier_one_could_not(
    database: Database, reachable: Settings, mlflow: Mlflow
) -> None:
    job_id = add_tracked_job(database)
    lease = claim(database)
    away = reachable.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:1"})
    with fed(lease, database, away, linger_s=0):
        record(database, lease, 1, 5)
        with database.writing() as session:
            RecoveryRepository(session).release(lease, "The worker was stopped", now=NOW)
    assert not [text for text in told(database, job_id, "warn") if "confirmed" in text]

    second = claim(database)
    with fed(second, database, reachable):
        record(database, second, 6, 7)
        finish(database, second)

    assert mlflow.steps(job_id) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.only_sqlite
def test_integrations_of_a_later_release_are_no_reason_not_to_train(
    database: Database, reachable: Settings
) -> None:
    add_job(database, integrations=[{"type": "comet", "comet": {}}])

    with feeding(claim(database), database, reachable, FrozenClock()) as threads:
        assert threads == []


@pytest.fixture
def closed() -> str:
    """Address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://user:{TOKEN}@127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Generator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://user:{TOKEN}@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.only_sqlite
@pytest.mark.parametrize("server", ["closed", "silent"])
def test_a_tracker_that_is_away_costs_the_job_nothing_but_a_warning(
    database: Database, settings: Settings, server: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(server)
    away = settings.model_copy(update={"mlflow_tracking_uri": address})
    job_id = add_tracked_job(database)
    lease = claim(database)

    with feeding(lease, database, away, FrozenClock(), linger_s=0) as threads:
        record(database, lease, 1, 5)
        finish(database, lease)
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s
    for thread in threads:
        thread.join(WAIT_S)

    assert took_s < 0.5, "nobody waits for a tracker"
    assert get_job(database, job_id).status is JobStatus.CANCELLED
    warnings = told(database, job_id, "warn")
    assert len(warnings) == 2
    assert warnings[0].startswith("MLflow cannot be used: it does not answer. The training is not")
    assert warnings[1].startswith("MLflow has not confirmed that it has all metrics.")
    assert not [line for line in warnings if TOKEN in line or "127.0.0.1" in line]


@pytest.mark.only_sqlite
def test_an_attempt_that_lost_its_job_sends_nothing_more(
    database: Database, reachable: Settings, mlflow: Mlflow
) -> None:
    job_id = add_tracked_job(database)
    lease = claim(database)
    with fed(lease, database, reachable):
        wait_until(lambda: mlflow.runs(job_id), within_s=WAIT_S)
        with database.writing() as session:
            RecoveryRepository(session).release(lease, "The worker was stopped", now=NOW)
        record(database, claim(database), 1, 5)

    assert mlflow.steps(job_id) == []
    assert mlflow.runs(job_id) == [("support", job_id, "RUNNING")]


@pytest.mark.only_sqlite
def test_the_process_of_a_tracker_knows_no_setting_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", "postgresql://tunery:password@db/tunery")

    with TrackerProcess() as process:
        # The kernel shows none until the program is loaded, which may be after Popen returns.
        path = Path(f"/proc/{process._process.pid}/environ")
        environment = wait_until(path.read_bytes, within_s=10)

    assert b"PATH=" in environment
    assert b"TUNERY_" not in environment
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError(f"Bearer {TOKEN} at https://user:password@host/x"), "ConnectionError"),
        (ConnectionError(f"refused: {TOKEN}"), "ConnectionError"),
        (ModuleNotFoundError("No module named 'wandb'"), "the worker does not have its library"),
    ],
)
def test_an_error_of_a_library_shows_no_secret(error: Exception, reason: str) -> None:
    access = Access(
        mlflow_tracking_uri="", mlflow_tracking_token=TOKEN, wandb_api_key="", wandb_base_url=""
    )

    failed = _explain(error, access)

    assert failed.reason == reason
    assert failed.detail
    assert TOKEN not in failed.detail
    assert "password" not in failed.detail
