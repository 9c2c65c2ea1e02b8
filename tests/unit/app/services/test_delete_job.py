"""A job that has ended is deleted with all that it has made, and with nothing else."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    TEXT_LINE,
    add_file,
    add_job,
    add_succeeded_job,
    build_job_in,
    build_saved_state,
    dump_tables,
    list_blobs,
    put_blob,
)

JOBS = "/v1/fine_tuning/jobs"


def add_saved_state(database: Database, store: LocalBlobStore, job_id: str) -> None:
    key = f"jobs/{job_id}/state"
    put_blob(store, key, TEXT_LINE)
    state = {"weights": {"key": key, "bytes": len(TEXT_LINE), "sha256": "0" * 64}}
    with database.writing() as session:
        session.add(
            build_saved_state(job_id, 1, state),
        )


def create(client: TestClient, training_file: str, **options: Any) -> str:
    body = {"model": "tiny", "training_file": training_file, "metadata": {"a": "1"}}
    return client.post(JOBS, json=body, **options).json()["id"]


OUTLIVE_A_JOB = {"projects", "project_usage", "audit_events"}
"""Tables in which a job leaves its turn, its processor time, and who created and deleted it."""


def dump_own(database: Database) -> dict[str, Any]:
    """Every row of the other tables."""
    tables = dump_tables(database)
    return {name: rows for name, rows in tables.items() if name not in OUTLIVE_A_JOB}


def test_nothing_of_the_job_is_left_and_everything_of_others(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    training_file = add_file(database, store)
    other = add_succeeded_job(database, store, steps=(1, 2))
    add_saved_state(database, store, other.id)
    tables, blobs = dump_own(database), list_blobs(store)
    job = add_succeeded_job(database, store, steps=(1, 2))
    add_saved_state(database, store, job.id)
    assert list_blobs(store) != blobs

    answer = client.delete(f"{JOBS}/{job.id}")

    assert answer.status_code == 200
    assert answer.json() == {"id": job.id, "object": "fine_tuning.job", "deleted": True}
    assert dump_own(database) == tables
    assert list_blobs(store) == blobs
    assert client.get(f"/v1/files/{training_file.id}/content").content == TEXT_LINE
    assert client.get(f"/v1/models/{job.fine_tuned_model}").status_code == 404


def test_its_labels_and_its_key_go_with_it(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    training_file = add_file(database, store).id
    tables = dump_own(database)
    job_id = create(client, training_file, headers={"Idempotency-Key": "k"})
    client.post(f"{JOBS}/{job_id}/cancel")

    client.delete(f"{JOBS}/{job_id}")

    assert dump_own(database) == tables


def test_deleting_again_is_a_404(client: TestClient, database: Database) -> None:
    job = add_job(database, **build_job_in(JobStatus.FAILED))
    client.delete(f"{JOBS}/{job.id}")

    answer = client.delete(f"{JOBS}/{job.id}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


def test_a_job_whose_model_was_deleted_before_can_be_deleted(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store, steps=(1, 2))
    client.delete(f"/v1/models/{job.fine_tuned_model}")
    client.delete(f"/v1/files/{job.result_file_id}")

    assert client.delete(f"{JOBS}/{job.id}").status_code == 200
    assert list_blobs(store) == []


@pytest.mark.parametrize("status", [status for status in JobStatus if not status.is_terminal])
def test_a_job_that_has_not_ended_must_be_cancelled_first(
    client: TestClient, database: Database, status: JobStatus
) -> None:
    job = add_job(database, **build_job_in(status))
    before = dump_tables(database)

    answer = client.delete(f"{JOBS}/{job.id}")

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "job_not_deletable"
    assert error["message"] == (
        f"Job {job.id} is {status}, and only a job that has ended can be deleted. Cancel it first."
    )
    assert dump_tables(database) == before
