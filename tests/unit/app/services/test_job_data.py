"""A job while its data is checked, and what is told about the data afterwards."""

from typing import Any

import pytest
from sqlalchemy import delete
from starlette.testclient import TestClient

from app.core.db.check_tables import DataCheck
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.session import Database
from app.core.job.child.training_events import JobError
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_file,
    add_job,
    build_data_report,
    claim_check,
    pass_checks,
)

JOBS = "/v1/fine_tuning/jobs"
REPORT = build_data_report().model_dump(mode="json")


@pytest.fixture
def job_id(client: TestClient, database: Database, store: LocalBlobStore) -> str:
    """A new job."""
    body = {"model": "tiny", "training_file": add_file(database, store).id}
    return client.post(JOBS, json=body).json()["id"]


def get(client: TestClient, job_id: str, what: str = "") -> dict[str, Any]:
    answer = client.get(f"{JOBS}/{job_id}{what}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: TestClient, job_id: str) -> tuple[int, str, str]:
    answer = client.get(f"{JOBS}/{job_id}/data")
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def test_who_polls_sees_that_the_data_is_being_checked(client: TestClient, job_id: str) -> None:
    assert get(client, job_id)["queue_position"] is None
    assert get(client, job_id, "/data") == {
        "object": "fine_tuning.job.data",
        "fine_tuning_job_id": job_id,
        "status": "validating_files",
        "checked_at": None,
        "report": None,
    }


def test_the_report_is_there_once_the_data_is_checked(
    client: TestClient, database: Database, job_id: str
) -> None:
    pass_checks(database)

    data = get(client, job_id, "/data")

    assert (data["status"], data["report"]) == ("queued", REPORT)
    assert data["checked_at"] == int(NOW.timestamp())
    assert get(client, job_id)["queue_position"] == 1


def test_the_report_on_data_that_is_refused_stays(
    client: TestClient, database: Database, job_id: str
) -> None:
    lease = claim_check(database)
    assert lease is not None
    error = JobError(code="row_too_long", message="Line 3 is too long.", param="training_file")
    with database.writing() as session:
        DataCheckRepository(session).finish(lease, REPORT, error=error, now=NOW)

    data = get(client, job_id, "/data")

    assert (data["status"], data["report"]) == ("failed", REPORT)


def test_a_job_that_was_cancelled_before_its_check_has_no_report(
    client: TestClient, job_id: str
) -> None:
    assert client.post(f"{JOBS}/{job_id}/cancel").json()["status"] == "cancelled"

    status, code, message = refusal(client, job_id)

    assert (status, code) == (404, "data_report_not_found")
    assert "was cancelled before its data was checked" in message


def test_a_check_that_kept_dying_leaves_no_report(client: TestClient, database: Database) -> None:
    error = {"code": "data_check_crashed", "message": "It died.", "param": None}
    job = add_job(database, status=JobStatus.FAILED, finished_at=NOW, error=error)

    assert "failed before its data was checked" in refusal(client, job.id)[2]


def test_a_job_of_an_earlier_release_has_no_report(client: TestClient, database: Database) -> None:
    job = add_job(database)
    with database.writing() as session:
        session.execute(delete(DataCheck))

    status, code, message = refusal(client, job.id)

    assert (status, code) == (404, "data_report_not_found")
    assert "a release of Tunery that did not check data" in message


def test_an_unknown_job_has_no_data(client: TestClient) -> None:
    assert refusal(client, "ftjob-none")[:2] == (404, "job_not_found")


def test_a_job_is_asked_to_pause_while_its_data_is_checked_and_told_otherwise(
    client: TestClient, database: Database, job_id: str
) -> None:
    asked = client.post(f"{JOBS}/{job_id}/pause").json()

    assert asked["status"] == "validating_files"
    assert asked["pause_requested_at"] is not None
    assert client.post(f"{JOBS}/{job_id}/pause").json() == asked
    resumed = client.post(f"{JOBS}/{job_id}/resume").json()
    assert (resumed["status"], resumed["pause_requested_at"]) == ("validating_files", None)
    pass_checks(database)
    assert get(client, job_id)["status"] == "queued"


def test_a_job_that_was_asked_to_pause_is_paused_once_its_data_is_checked(
    client: TestClient, database: Database, job_id: str
) -> None:
    client.post(f"{JOBS}/{job_id}/pause")

    pass_checks(database)

    job = get(client, job_id)
    assert (job["status"], job["pause_requested_at"]) == ("paused", None)
    assert get(client, job_id, "/data")["status"] == "paused"
    assert client.post(f"{JOBS}/{job_id}/resume").json()["status"] == "queued"
