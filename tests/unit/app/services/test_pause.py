"""A job that is held back, at its creation or later, and let go again; and who goes first."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.db.repositories.leases import LeaseRepository, RequestedAction
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    build_job_in,
    claim,
    dump_tables,
    list_messages,
    pass_checks,
)

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def training_file(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store).id


def create(client: TestClient, training_file: str, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "training_file": training_file} | more
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(client: TestClient, job_id: str, what: str) -> dict[str, Any]:
    """As the stock client asks: an empty body that is declared as JSON."""
    answer = client.post(
        f"{JOBS}/{job_id}/{what}", content=b"", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_queued_job_is_paused_at_once_and_resumed_at_its_old_place(
    client: TestClient, database: Database
) -> None:
    first, second = add_job(database), add_job(database)

    paused = ask(client, first.id, "pause")

    assert (paused["status"], paused["queue_position"]) == ("paused", None)
    assert paused["pause_requested_at"] is None
    assert client.get(f"{JOBS}/{second.id}").json()["queue_position"] == 1
    resumed = ask(client, first.id, "resume")
    assert (resumed["status"], resumed["queue_position"]) == ("queued", 1)
    assert list_messages(database, first.id)[3:] == [
        "Fine-tuning job paused",
        "Fine-tuning job resumed",
    ]


def test_a_running_job_is_asked_to_pause_and_told_otherwise(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    lease = claim(database)

    asked = ask(client, job.id, "pause")

    assert asked["status"] == "running"
    assert asked["pause_requested_at"] is not None
    with database.reading() as session:
        assert LeaseRepository(session).read_requested_action(lease) is RequestedAction.PAUSE
    resumed = ask(client, job.id, "resume")
    assert (resumed["status"], resumed["pause_requested_at"]) == ("running", None)
    with database.reading() as session:
        assert LeaseRepository(session).read_requested_action(lease) is RequestedAction.CONTINUE


def test_a_running_job_is_paused_once_its_worker_has_left_it(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    lease = claim(database)
    ask(client, job.id, "pause")
    with database.writing() as session:
        RecoveryRepository(session).release(lease, "The job was paused", now=NOW)

    job_read = client.get(f"{JOBS}/{job.id}").json()

    assert (job_read["status"], job_read["pause_requested_at"]) == ("paused", None)
    assert ask(client, job.id, "resume")["status"] == "queued"


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (JobStatus.PAUSED, "pause"),
        (JobStatus.VALIDATING_FILES, "resume"),
        (JobStatus.QUEUED, "resume"),
        (JobStatus.RUNNING, "resume"),
    ],
)
def test_asking_for_what_is_so_already_changes_nothing(
    client: TestClient, database: Database, status: JobStatus, what: str
) -> None:
    job = add_job(database, **build_job_in(status))
    before = dump_tables(database)

    assert ask(client, job.id, what)["status"] == status
    assert dump_tables(database) == before


def test_asking_a_running_job_twice_keeps_the_first_request(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    claim(database)
    first = ask(client, job.id, "pause")

    assert ask(client, job.id, "pause") == first


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (JobStatus.SUCCEEDED, "has already succeeded"),
        (JobStatus.FAILED, "has already failed"),
        (JobStatus.CANCELLED, "has already been cancelled"),
    ],
)
@pytest.mark.parametrize("what", ["pause", "resume"])
def test_a_job_that_has_ended_can_be_neither_paused_nor_resumed(
    client: TestClient, database: Database, status: JobStatus, ending: str, what: str
) -> None:
    job = add_job(database, **build_job_in(status))
    before = dump_tables(database)

    answer = client.post(f"{JOBS}/{job.id}/{what}")

    assert answer.status_code == 400
    error = answer.json()["error"]
    able = {"pause": "pausable", "resume": "resumable"}[what]
    assert error["code"] == f"job_not_{able}"
    assert error["message"].startswith(f"Job {job.id} {ending}, so it cannot be {what}d.")
    assert dump_tables(database) == before


def test_a_job_that_is_being_cancelled_is_not_paused(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)
    claim(database)
    client.post(f"{JOBS}/{job.id}/cancel")

    answer = client.post(f"{JOBS}/{job.id}/pause")

    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"Job {job.id} is being cancelled, so it cannot be paused.",
        "type": "invalid_request_error",
        "param": None,
        "code": "job_not_pausable",
    }
    assert ask(client, job.id, "resume")["cancel_requested_at"] is not None


def test_a_paused_job_can_be_cancelled(client: TestClient, database: Database) -> None:
    job = add_job(database, status=JobStatus.PAUSED)

    assert ask(client, job.id, "cancel")["status"] == "cancelled"


def test_a_job_that_is_not_to_start_waits_to_be_resumed(
    client: TestClient, database: Database, training_file: str
) -> None:
    held = create(client, training_file, auto_start=False)
    assert (held["status"], held["queue_position"]) == ("validating_files", None)
    assert held["pause_requested_at"] == held["created_at"]
    pass_checks(database)
    assert client.get(f"{JOBS}/{held['id']}").json()["status"] == "paused"
    assert list_messages(database, held["id"])[-1] == "Files validated, paused until it is resumed"
    assert client.delete(f"/v1/files/{training_file}").json()["error"]["code"] == "file_in_use"

    ask(client, held["id"], "resume")

    assert claim(database).job_id == held["id"]


@pytest.mark.parametrize("value", [True, None])
def test_a_job_starts_by_itself_unless_it_is_told_not_to(
    client: TestClient, database: Database, training_file: str, *, value: bool | None
) -> None:
    job = create(client, training_file, auto_start=value)

    pass_checks(database)

    assert client.get(f"{JOBS}/{job['id']}").json()["status"] == "queued"


def test_the_higher_priority_is_next_and_then_the_older_job(
    client: TestClient, database: Database, training_file: str
) -> None:
    priorities = [0, -1000, 1000, None, 5, 1000]
    jobs = [create(client, training_file, priority=one) for one in priorities]
    pass_checks(database)

    assert [job["priority"] for job in jobs] == [0, -1000, 1000, 0, 5, 1000]
    order = [jobs[index]["id"] for index in (2, 5, 4, 0, 3, 1)]
    positions = [client.get(f"{JOBS}/{job_id}").json()["queue_position"] for job_id in order]
    assert positions == [1, 2, 3, 4, 5, 6]
    assert [claim(database).job_id for _ in order] == order
