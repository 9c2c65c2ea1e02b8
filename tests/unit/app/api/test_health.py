from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from app.core.clock import utc_now
from app.core.db.repositories.workers import SILENT_AFTER
from app.core.db.session import Database
from app.core.disk import free_bytes
from app.core.settings import Settings
from tests.builders import add_job, add_worker


def test_the_process_answers(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readiness_counts_waiting_jobs_and_workers_that_are_alive(
    client: TestClient, database: Database
) -> None:
    add_job(database)
    now = utc_now()
    for name in ("worker-1", "worker-2"):
        add_worker(database, name, now=now - SILENT_AFTER / 2)
    add_worker(database, "worker-3", now=now - SILENT_AFTER - timedelta(seconds=1))

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
    assert answer["store_answers"] is True
