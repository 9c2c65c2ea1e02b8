"""An adapter that was made elsewhere becomes a tuned model like any other."""

import asyncio
import hashlib
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.upload_slots import UploadSlots
from app.core.db.base import Project
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.adapters import (
    ADAPTER,
    CONFIG,
    RANK,
    WEIGHTS,
    write_base_model,
    write_tensors,
    zip_adapter,
)
from tests.asgi import stock_client
from tests.builders import add_file, add_key, bearer, dump_tables, list_blobs

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(autouse=True)
def base_model(settings: Settings) -> None:
    """Weights for the base model `tiny`, which the usual fixture has none of."""
    write_base_model(settings.data_dir / "models" / "tiny")


def send(client: TestClient, content: bytes, **fields: Any) -> Any:
    options = {"headers": fields.pop("headers", {})}
    files = {"file": ("C:\\mine\\adapter.zip", content, "application/zip")}
    return client.post("/v1/models", data={"base_model": "tiny"} | fields, files=files, **options)


def test_an_imported_model_is_listed_downloaded_and_deleted(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    before, content = dump_tables(database), zip_adapter()

    answer = send(client, content, suffix="Found")

    assert answer.status_code == 200, answer.text
    model = answer.json()
    assert model["id"].startswith("ft:tiny:tunery:found:")
    archive = {"filename": "adapter.zip", "sha256": hashlib.sha256(content).hexdigest()}
    assert (model["imported"], model["parent"], model["step_number"]) == (archive, None, 0)
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert model["id"] in {each["id"] for each in client.get("/v1/models").json()["data"]}
    job = client.get(f"{JOBS}/{model['fine_tuning_job_id']}").json()
    assert (job["status"], job["imported"], job["fine_tuned_model"]) == (
        "succeeded",
        archive,
        model["id"],
    )
    assert job["hyperparameters"]["lora_r"] == RANK
    (checkpoint,) = client.get(f"{JOBS}/{job['id']}/checkpoints").json()["data"]
    assert (checkpoint["is_result"], checkpoint["metrics"]["train_loss"]) == (True, None)
    downloaded = client.get(f"{JOBS}/{job['id']}/adapter").content
    with zipfile.ZipFile(io.BytesIO(downloaded)) as archive_again:
        assert archive_again.read(WEIGHTS) == write_tensors(ADAPTER)
        config = json.loads(archive_again.read(CONFIG))
    assert (config["r"], config["target_modules"]) == (RANK, ["q_proj", "v_proj"])
    assert client.delete(f"/v1/models/{model['id']}").status_code == 200
    assert client.delete(f"{JOBS}/{job['id']}").status_code == 200
    kept = {"audit_events", "project_usage"}
    after = dump_tables(database)
    assert {k: v for k, v in after.items() if k not in kept} == {
        k: v for k, v in before.items() if k not in kept
    }
    assert list_blobs(store) == []


def test_an_imported_model_is_continued_and_what_was_downloaded_is_imported_again(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    model = send(client, zip_adapter()).json()

    body = {"model": model["id"], "training_file": add_file(database, store).id}
    job = client.post(JOBS, json=body).json()

    assert job["parent"]["model"] == model["id"]
    assert job["hyperparameters"]["lora_r"] == RANK
    downloaded = client.get(f"{JOBS}/{model['fine_tuning_job_id']}/adapter").content
    again = send(client, downloaded)
    assert again.status_code == 200, again.text
    assert again.json()["id"] != model["id"]


@pytest.mark.parametrize(
    "headers", [{"Idempotency-Key": "one"}, {"x-stainless-retry-count": "1"}], ids=["key", "retry"]
)
def test_a_request_that_is_sent_again_imports_no_second_model(
    client: TestClient, store: LocalBlobStore, headers: dict[str, str]
) -> None:
    content = zip_adapter()
    first = send(client, content, suffix="a", headers=headers)
    blobs = list_blobs(store)

    again = send(client, content, suffix="a", headers=headers)

    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert list_blobs(store) == blobs
    other = send(client, content, suffix="a")
    assert other.json()["id"] != first.json()["id"]


def test_requests_at_the_same_time_import_one_model(client: TestClient) -> None:
    content, headers = zip_adapter(), {"Idempotency-Key": "one"}

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: send(client, content, headers=headers), range(2)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("changed", "fields"), [(b"no zip", {}), (None, {"suffix": "b"})], ids=["file", "form"]
)
def test_a_key_belongs_to_one_import(
    client: TestClient, changed: bytes | None, fields: dict[str, str]
) -> None:
    content, headers = zip_adapter(), {"Idempotency-Key": "one"}
    send(client, content, headers=headers)

    error = send(client, changed or content, headers=headers, **fields).json()["error"]

    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")


@pytest.mark.only_sqlite
def test_an_import_too_many_is_a_503_that_clients_repeat(client: TestClient, app: FastAPI) -> None:
    slots = UploadSlots(9, wait_s=0.01)
    app.state.resources = replace(app.state.resources, upload_slots=slots)

    async def post_while_others_import() -> None:
        async with slots.take_import(), slots.take_import():
            post_nothing = partial(client.post, "/v1/models", files={"other": b""})
            broken = await asyncio.to_thread(post_nothing)
            answer = await asyncio.to_thread(send, client, zip_adapter())
        assert broken.status_code == 400, "an archive is received before its turn to be checked"
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_uploads")
        assert "checking 2 adapters" in answer.text

    asyncio.run(post_while_others_import())
    assert send(client, zip_adapter()).status_code == 200


def test_what_cannot_be_imported_leaves_nothing(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    before = dump_tables(database)
    refused = [
        (send(client, b"no zip"), "invalid_adapter", "file"),
        (send(client, zip_adapter(settings={"r": 3})), "invalid_adapter", "file"),
        (send(client, zip_adapter(), base_model="none"), "model_not_available", "model"),
        (send(client, zip_adapter(), base_model=""), "missing_required_parameter", "base_model"),
        (send(client, zip_adapter(), suffix="x" * 65), "invalid_value", "suffix"),
        (
            client.post("/v1/models", data={"base_model": "tiny"}, files={"other": b""}),
            "missing_required_parameter",
            "file",
        ),
    ]

    for answer, code, param in refused:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert client.post("/v1/models", json={"base_model": "tiny"}).status_code == 415
    assert dump_tables(database) == before
    assert list_blobs(store) == []
    assert list(store.list_scratch()) == []


def test_an_import_cannot_be_repeated_as_a_job(client: TestClient) -> None:
    model = send(client, zip_adapter()).json()

    answer = client.post(f"{JOBS}/{model['fine_tuning_job_id']}/rerun")

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "job_not_repeatable")
    assert model["id"] in error["message"]


def test_an_import_belongs_to_its_project_and_counts_toward_its_bytes(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    key = add_key(database, "other")
    model = send(client, zip_adapter(), headers=bearer(key)).json()
    mine = bearer(add_key(database, "mine"))
    assert client.get(f"/v1/models/{model['id']}", headers=mine).status_code == 404
    with database.writing() as session:
        for project in session.query(Project):
            project.max_stored_bytes = 10
    blobs = list_blobs(store)

    answer = send(client, zip_adapter(), headers=mine)

    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    assert list_blobs(store) == blobs


@pytest.mark.only_sqlite
def test_the_official_client_imports_continues_and_lists(
    client: TestClient, database: Database, store: LocalBlobStore, tmp_path: Path
) -> None:
    """As `docs/use-your-model.md` has it."""
    (tmp_path / "adapter.zip").write_bytes(zip_adapter())
    api = stock_client(client, is_strict=True)

    model: Any = api.post(
        "/models",
        cast_to=object,
        body={"base_model": "tiny", "suffix": "mine"},
        files={"file": tmp_path / "adapter.zip"},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )

    job = api.fine_tuning.jobs.create(
        model=model["id"], training_file=add_file(database, store).id, suffix="more"
    )
    assert job.model_dump()["parent"]["model"] == model["id"]
    assert {each.id for each in api.models.list()} >= {"tiny", model["id"]}
    assert [each.id for each in api.fine_tuning.jobs.list()][-1] == model["fine_tuning_job_id"]
    checkpoints = api.fine_tuning.jobs.checkpoints.list(model["fine_tuning_job_id"])
    assert [each.step_number for each in checkpoints] == [0]
    assert api.models.retrieve(model["id"]).model_dump()["imported"]["filename"] == "adapter.zip"
