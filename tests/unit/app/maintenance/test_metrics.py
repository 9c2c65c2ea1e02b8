"""What Prometheus reads: right, cheap to read, and with few labels, whatever clients send."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event
from starlette.testclient import TestClient

from app.core.clock import utc_now
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.main import create_app
from app.maintenance.metrics import CannotServeMetricsError, serving_metrics
from tests.builders import add_job, add_succeeded_job, add_worker, claim, list_checkpoints
from tests.exports import add_task, claim_task

Labels = tuple[tuple[str, str], ...]


def servers() -> list[str]:
    """Names of the threads that serve metrics."""
    return [each.name for each in threading.enumerate() if "serve_forever" in each.name]


def serving(
    app: FastAPI, *, database: Database | None = None, port: int | None = 0
) -> AbstractContextManager[None]:
    """Serve the metrics of an application in a block."""
    resources = app.state.resources
    settings = resources.settings.model_copy(update={"metrics_port": port})
    registry = app.state.metrics.registry
    return serving_metrics(registry, settings, database or resources.database)


@pytest.fixture
def scrape(app: FastAPI, database: Database) -> Iterator["Scrape"]:
    with serving(app):
        yield Scrape(app)


class Scrape:
    """Reads the metrics, each by its name and labels."""

    def __init__(self, app: FastAPI) -> None:
        self._registry = app.state.metrics.registry

    def __call__(self) -> dict[str, dict[Labels, float]]:
        found: dict[str, dict[Labels, float]] = {}
        text = generate_latest(self._registry).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = (
                    sample.value
                )
        return found


def test_jobs_workers_and_the_queue_are_those_of_the_database(
    scrape: Scrape, database: Database
) -> None:
    now = utc_now()
    add_job(database, created_at=now - timedelta(hours=2))
    add_job(database, created_at=now - timedelta(hours=1))
    add_worker(database, "worker-1", now)
    add_worker(database, "worker-2", now - timedelta(minutes=5))
    lease = claim(database)
    with database.writing() as session:
        error = JobError(code="training_crashed", message="It crashed.")
        LeaseRepository(session).finish(lease, JobStatus.FAILED, now=now, error=error)

    values = scrape()

    jobs = values["tunery_jobs"]
    assert (jobs[(("status", "queued"),)], jobs[(("status", "failed"),)]) == (1, 1)
    assert jobs[(("status", "running"),)] == 0
    assert values["tunery_failed_jobs"] == {(("code", "training_crashed"),): 1}
    assert 3590 < values["tunery_queue_oldest_seconds"][()] < 3700
    workers = values["tunery_workers"]
    assert (workers[(("state", "idle"),)], workers[(("state", "silent"),)]) == (1, 1)
    assert values["tunery_database_up"] == {(): 1}
    assert values["tunery_sampler_up"] == {(): 0}


def test_tasks_are_counted_by_kind_and_status(
    scrape: Scrape, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store, steps=(1, 2))
    for checkpoint in list_checkpoints(database, job.id):
        add_task(database, checkpoint)
    claim_task(database)

    assert scrape()["tunery_tasks"] == {
        (("kind", "export"), ("status", status)): 1 for status in ("queued", "running")
    }


def test_the_speed_of_training_is_that_of_the_jobs_that_run(
    scrape: Scrape, database: Database
) -> None:
    add_job(database)
    add_job(database, tokens_per_second=7.0)
    lease = claim(database)
    with database.writing() as session:
        session.get_one(Job, lease.job_id).tokens_per_second = 1000.0

    assert scrape()["tunery_training_tokens_per_second"] == {(): 1000}


def test_the_database_is_asked_at_most_once_a_second(scrape: Scrape, app: FastAPI) -> None:
    statements: list[str] = []
    engine = app.state.resources.database.engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    scrape()
    first = len(statements)
    for _ in range(5):
        scrape()

    asks_time = engine.dialect.name == "postgresql"  # a server has a clock of its own
    assert 0 < first <= 7 + asks_time
    assert len(statements) == first


def test_a_database_that_is_away_is_said_to_be(app: FastAPI) -> None:
    """And the rest is still there."""
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    with serving(app, database=nowhere):
        values = Scrape(app)()

    assert values["tunery_database_up"] == {(): 0}
    assert "tunery_jobs" not in values
    assert values["tunery_disk_free_bytes"][()] > 0
    assert "tunery_database_wal_bytes" not in values


def test_requests_are_counted_by_route_and_class_of_status(
    scrape: Scrape, client: TestClient, database: Database
) -> None:
    job = f"/v1/fine_tuning/jobs/{add_job(database).id}"
    for path in (job, job, job, "/v1/fine_tuning/jobs/nope"):
        client.get(path)
    client.post("/v1/files", files={"file": ("a.jsonl", b"x" * 1000)}, data={"purpose": "no"})

    values = scrape()

    counts = values["tunery_http_request_duration_seconds_count"]
    route = ("route", "/v1/fine_tuning/jobs/{job_id}")
    assert counts[("method", "GET"), route, ("status", "2xx")] == 3, "also those given again"
    assert counts[("method", "GET"), route, ("status", "4xx")] == 1
    assert values["tunery_http_received_bytes_total"][(("route", "/v1/files"),)] > 1000


def test_whatever_clients_send_there_are_few_labels(scrape: Scrape, client: TestClient) -> None:
    for number in range(50):
        client.get(f"/nowhere/{number}")
        client.get(f"/v1/files/file-{number}")
        client.get(f"/docs/assets/{number}")
        client.request(f"BREW{number}", "/v1/files")

    labels = scrape()["tunery_http_request_duration_seconds_count"]

    assert len(labels) == 3, labels


def test_they_are_served_on_their_own_port_alone(
    app: FastAPI, client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving(app):
        (address,) = [
            one.getMessage().split()[-1]
            for one in caplog.records
            if "metrics on" in one.getMessage()
        ]
        answer = httpx.get(address)
        assert servers()
        port = httpx.URL(address).port
        with (
            pytest.raises(
                CannotServeMetricsError, match=f"127.0.0.1:{port}: Address already in use"
            ),
            serving(create_app(settings), port=port),
        ):
            pass

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert "tunery_build_info{" in answer.text
    assert client.get("/metrics").status_code == 404
    assert not servers()


def test_by_default_there_are_none(app: FastAPI) -> None:
    with serving(app, port=None):
        assert not servers()
