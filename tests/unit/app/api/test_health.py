import os
import time

import pytest
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.disk import free_bytes
from app.core.occupancy import WORKER_SILENT_AFTER_S
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

    answer = client.get("/readyz").json()
    assert (answer["status"], answer["workers"], answer["queued_jobs"]) == ("ready", 2, 1)


def test_a_service_without_a_worker_is_ready_to_take_jobs(client: TestClient) -> None:
    answer = client.get("/readyz").json()
    assert (answer["status"], answer["workers"], answer["queued_jobs"]) == ("ready", 0, 0)


def test_readiness_says_how_much_of_the_disk_is_free(
    client: TestClient, settings: Settings
) -> None:
    answer = client.get("/readyz").json()

    assert answer["free_bytes"] == pytest.approx(free_bytes(settings.data_dir), rel=0.1)
    assert answer["has_room"] is True


def test_a_worker_that_ends_while_it_is_counted_is_not(
    client: TestClient, settings: Settings
) -> None:
    settings.workers_dir.mkdir()
    (settings.workers_dir / "ended.alive").symlink_to("nowhere")

    assert client.get("/readyz").json()["workers"] == 0
