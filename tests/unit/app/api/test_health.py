import os
import time

from starlette.testclient import TestClient

from app.api.health import WORKER_SILENT_AFTER_S
from app.core.db.session import Database
from app.core.settings import Settings
from tests.builders import add_job


def test_the_process_answers(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readiness_counts_waiting_jobs_and_workers_that_are_alive(
    client: TestClient, database: Database, settings: Settings
) -> None:
    add_job(database)
    settings.workers_dir.mkdir()
    for name in ("one", "two", "silent"):
        (settings.workers_dir / f"{name}.alive").touch()
    long_ago = time.time() - WORKER_SILENT_AFTER_S - 1
    os.utime(settings.workers_dir / "silent.alive", (long_ago, long_ago))

    assert client.get("/readyz").json() == {"status": "ready", "workers": 2, "queued_jobs": 1}


def test_a_service_without_a_worker_is_ready_to_take_jobs(client: TestClient) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "workers": 0, "queued_jobs": 0}


def test_a_worker_that_ends_while_it_is_counted_is_not(
    client: TestClient, settings: Settings
) -> None:
    settings.workers_dir.mkdir()
    (settings.workers_dir / "ended.alive").symlink_to("nowhere")

    assert client.get("/readyz").json()["workers"] == 0
