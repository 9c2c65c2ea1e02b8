"""A 2xx is a promise: what it speaks of has been committed. FastAPI's default is the reverse."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    TEXT_LINE,
    add_file,
    add_job,
    add_succeeded_job,
    dump_tables,
    get_job,
)


@pytest.fixture
def full_disk(client: TestClient, app: FastAPI) -> Iterator[None]:
    """From now on no commit of the API succeeds."""

    def fail(_connection: object) -> None:
        raise OSError(28, "No space left on device")

    engine = app.state.resources.database.engine
    event.listen(engine, "commit", fail)
    yield
    event.remove(engine, "commit", fail)


@pytest.fixture
def training_file(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store).id


@pytest.mark.usefixtures("full_disk")
def test_a_job_that_was_not_committed_is_not_promised_and_its_key_not_taken(
    client: TestClient, training_file: str, database: Database
) -> None:
    before = dump_tables(database)

    answer = client.post(
        "/v1/fine_tuning/jobs",
        json={"model": "tiny", "training_file": training_file},
        headers={"Idempotency-Key": "k"},
    )

    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert client.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert dump_tables(database) == before


def test_a_cancel_that_was_not_committed_is_not_promised(
    client: TestClient, database: Database, request: pytest.FixtureRequest
) -> None:
    job = add_job(database)
    request.getfixturevalue("full_disk")

    answer = client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")

    assert answer.status_code == 507
    assert get_job(database, job.id).status == "queued"


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_was_not_committed_is_not_promised(client: TestClient) -> None:
    files = {"file": ("a.jsonl", TEXT_LINE)}

    answer = client.post("/v1/files", files=files, data={"purpose": "fine-tune"})

    assert answer.status_code == 507
    assert client.get("/v1/files").json()["data"] == []


def test_bytes_are_freed_only_after_their_row_is_gone(
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    settings: Settings,
    request: pytest.FixtureRequest,
) -> None:
    file = add_file(database, store)
    job = add_succeeded_job(database, store, steps=(1,))
    before = sorted(settings.blobs_dir.rglob("*"))
    request.getfixturevalue("full_disk")

    answers = [
        client.delete(f"/v1/files/{file.id}"),
        client.delete(f"/v1/models/{job.fine_tuned_model}"),
        client.delete(f"/v1/fine_tuning/jobs/{job.id}"),
    ]

    assert [answer.status_code for answer in answers] == [507, 507, 507]
    assert sorted(settings.blobs_dir.rglob("*")) == before
