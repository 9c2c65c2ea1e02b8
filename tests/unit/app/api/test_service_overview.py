"""What an admin sees of the whole service: workers, queue, disk, findings."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from app.core.version import VERSION
from tests.asgi import full_disk
from tests.builders import (
    MINUTE,
    add_file,
    add_job,
    add_project,
    add_worker,
    build_job_in,
    claim,
    claim_check,
)

OTHER = "proj-other"
SERVICE = "/v1/organization/service"
GIB = 2**30


def get(client: TestClient) -> dict[str, Any]:
    answer = client.get(SERVICE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def add_check(database: Database, store: LocalBlobStore, project_id: str) -> Job:
    """A job whose data is to be checked."""
    file = add_file(database, store, project_id=project_id)
    changes = {"status": JobStatus.VALIDATING_FILES, "training_file_id": file.id}
    return add_job(database, project_id=project_id, **changes)


def test_an_empty_service_is_well(client: TestClient, database: Database) -> None:
    shown = get(client)

    assert (shown["object"], shown["version"], shown["workers"]) == (
        "organization.service",
        VERSION,
        [],
    )
    kind = "PostgreSQL " if "postgresql" in str(database.engine.url) else "SQLite "
    assert shown["database"].startswith(kind)
    assert shown["queue"] == {
        "jobs": dict.fromkeys(JobStatus, 0),
        "oldest_waiting_at": None,
        "projects": [],
    }
    assert shown["disk"]["has_room"] is True
    assert shown["store"] == "local disk"
    assert 0 < shown["disk"]["free_bytes"] < shown["disk"]["total_bytes"]


def test_a_worker_shows_what_it_does(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    now = utc_now()
    add_project(database, OTHER)
    trained = add_job(database, created_at=now)
    add_worker(database, "worker-1", now, memory_bytes=8 * GIB)
    claim(database, "worker-1", now)
    checked = add_check(database, store, OTHER)
    add_worker(database, "worker-2", now)
    claim_check(database, "worker-2", now=now)
    add_worker(database, "worker-3", now)
    add_worker(database, "worker-4", now - MINUTE)

    workers = {worker["id"]: worker for worker in get(client)["workers"]}

    assert {name: each["state"] for name, each in workers.items()} == {
        "worker-1": "running",
        "worker-2": "checking",
        "worker-3": "idle",
        "worker-4": "idle",
    }
    assert [each["is_alive"] for each in workers.values()] == [True, True, True, False]
    assert workers["worker-1"] == {
        "id": "worker-1",
        "state": "running",
        "is_alive": True,
        "heartbeat_at": int(now.timestamp()),
        "started_at": int(now.timestamp()),
        "version": VERSION,
        "memory_bytes": 8 * GIB,
        "machine": None,
        "ability": None,
        "models_in_memory": [],
        "silent_since": None,
        "tasks": [
            {
                "job_id": trained.id,
                "project_id": DEFAULT_PROJECT_ID,
                "activity": "training",
                "started_at": int(now.timestamp()),
                "threads": 1,
            }
        ],
    }
    assert workers["worker-2"]["tasks"] == [
        {
            "job_id": checked.id,
            "project_id": OTHER,
            "activity": "checking_data",
            "started_at": int(now.timestamp()),
            "threads": None,
        }
    ]


def test_a_worker_that_trains_may_check_data_too(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    now = utc_now()
    add_worker(database, "worker-1", now)
    add_job(database)
    claim(database, "worker-1", now)
    add_check(database, store, DEFAULT_PROJECT_ID)
    claim_check(database, "worker-1", now=now)

    (worker,) = get(client)["workers"]

    assert worker["state"] == "running"
    assert [task["activity"] for task in worker["tasks"]] == ["training", "checking_data"]


def test_the_queue_is_shown_as_a_whole_and_by_project(
    client: TestClient, database: Database
) -> None:
    oldest = utc_now() - timedelta(hours=2)
    add_project(database, OTHER)
    add_job(database, created_at=oldest)
    for status in (JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.FAILED):
        add_job(database, project_id=OTHER, **build_job_in(status))

    queue = get(client)["queue"]

    assert {status: count for status, count in queue["jobs"].items() if count} == {
        "queued": 2,
        "paused": 1,
        "failed": 1,
    }
    assert queue["oldest_waiting_at"] == int(oldest.timestamp())
    assert queue["projects"] == [
        {"project_id": DEFAULT_PROJECT_ID, "name": "Default project", "jobs": {"queued": 1}},
        {"project_id": OTHER, "name": OTHER, "jobs": {"queued": 1, "paused": 1}},
    ]


@pytest.mark.only_sqlite
def test_a_full_disk_is_shown(client: TestClient, app: FastAPI) -> None:
    with full_disk(app):
        disk = get(client)["disk"]

    assert (disk["has_room"], disk["min_free_bytes"]) == (False, 2**62)


def test_the_quick_checks_of_the_doctor_are_made(client: TestClient, database: Database) -> None:
    add_job(database)

    findings = {finding["check"]: finding for finding in get(client)["findings"]}

    assert findings.keys() == {
        "ballast",
        "base models",
        "database",
        "file system",
        "jobs",
        "space",
        "store",
        "stuck jobs",
        "tasks",
        "workers",
    }
    assert findings["workers"] == {
        "check": "workers",
        "level": "warn",
        "message": "none is alive, and 1 jobs wait",
        "advice": "Start a worker.",
    }


@pytest.mark.only_sqlite
def test_findings_are_used_again_for_ten_seconds(
    client: TestClient, app: FastAPI, database: Database
) -> None:
    checkups = app.state.resources.checkups
    now = utc_now()
    first = checkups.make(now=now)
    add_job(database)

    assert checkups.make(now=now + timedelta(seconds=9)) is first
    later = checkups.make(now=now + timedelta(seconds=10))
    assert later.made_at == now + timedelta(seconds=10)
    assert [each.message for each in later.findings] != [each.message for each in first.findings]


def test_nothing_shown_is_secret(client: TestClient, database: Database) -> None:
    answer = client.get(SERVICE)

    password = database.engine.url.password
    assert "postgresql://" not in answer.text
    assert password is None or str(password) not in answer.text
