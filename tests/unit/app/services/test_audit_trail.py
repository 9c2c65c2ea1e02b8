"""Who did what, with which key: one event for each change and each download, and no secrets."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.access.api_keys import read_key_id
from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from app.maintenance.keys import revoke_key
from tests.builders import TEXT_LINE, add_key, add_succeeded_job, bearer, list_checkpoints

JOBS = "/v1/fine_tuning/jobs"
LOG = "/v1/organization/audit_logs"


@pytest.fixture
def key(database: Database) -> str:
    return add_key(database)


@pytest.fixture
def user(client: TestClient, key: str) -> TestClient:
    """Sends the key with every request."""
    client.headers |= bearer(key)
    return client


def read_log(user: TestClient, **query: Any) -> list[dict[str, Any]]:
    """The events, oldest first."""
    return user.get(LOG, params={"limit": 1000} | query).json()["data"][::-1]


def upload(user: TestClient) -> str:
    files = {"file": ("secret-name.jsonl", TEXT_LINE)}
    return user.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()["id"]


def test_every_change_and_every_download_is_in_the_log(user: TestClient, key: str) -> None:
    file_id = upload(user)
    user.get(f"/v1/files/{file_id}/content")
    job_id = user.post(JOBS, json={"model": "tiny", "training_file": file_id}).json()["id"]
    for action in ("pause", "resume", "cancel"):
        assert user.post(f"{JOBS}/{job_id}/{action}").status_code == 200
    again_id = user.post(f"{JOBS}/{job_id}/rerun", json={}).json()["id"]
    user.delete(f"{JOBS}/{job_id}")
    user.post(f"{JOBS}/{again_id}/cancel")
    last = user.delete(f"/v1/files/{file_id}")

    log = read_log(user)

    assert [(event["type"], event["object_id"]) for event in log] == [
        ("api_key.created", read_key_id(key)),
        ("file.uploaded", file_id),
        ("file.downloaded", file_id),
        ("job.created", job_id),
        ("job.paused", job_id),
        ("job.resumed", job_id),
        ("job.cancelled", job_id),
        ("job.rerun", again_id),
        ("job.deleted", job_id),
        ("job.cancelled", again_id),
        ("file.deleted", file_id),
    ]
    assert {event["key_id"] for event in log[1:]} == {read_key_id(key)}
    assert log[-1]["request_id"] == last.headers["x-request-id"]
    assert {event["project_id"] for event in log} == {DEFAULT_PROJECT_ID}


def test_adapters_and_models_are_in_the_log(
    user: TestClient, database: Database, store: LocalBlobStore
) -> None:
    job = add_succeeded_job(database, store)
    (checkpoint,) = list_checkpoints(database, job.id)

    assert user.get(f"{JOBS}/{job.id}/adapter").status_code == 200
    assert user.delete(f"/v1/models/{job.fine_tuned_model}").status_code == 200

    assert [(event["type"], event["object_id"]) for event in read_log(user)[1:]] == [
        ("adapter.downloaded", checkpoint.id),
        ("model.deleted", job.fine_tuned_model),
    ]


def test_a_download_in_several_ranges_is_recorded_once(user: TestClient) -> None:
    file_id = upload(user)
    content = f"/v1/files/{file_id}/content"
    statuses = [
        user.get(content, headers=headers).status_code
        for headers in (
            {"range": "bytes=0-4"},
            {"range": "bytes=5-"},
            {"range": "bytes=-4"},
            {"range": "bytes=9999-"},
            {"if-none-match": "*"},
        )
    ]

    assert statuses == [206, 206, 206, 416, 304]
    downloads = [event for event in read_log(user) if event["type"] == "file.downloaded"]
    assert len(downloads) == 1


def test_a_download_that_leaves_the_first_byte_out_is_recorded_once(user: TestClient) -> None:
    content = f"/v1/files/{upload(user)}/content"
    for _ in range(2):
        assert user.get(content, headers={"range": "bytes=1-"}).status_code == 206

    downloads = [event for event in read_log(user) if event["type"] == "file.downloaded"]
    assert len(downloads) == 1


def test_a_file_of_an_upload_in_parts_is_in_the_log(user: TestClient) -> None:
    body = {"purpose": "fine-tune", "filename": "a", "bytes": len(TEXT_LINE), "mime_type": "x/y"}
    upload_id = user.post("/v1/uploads", json=body).json()["id"]
    part = user.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("d", TEXT_LINE)}).json()
    done = user.post(f"/v1/uploads/{upload_id}/complete", json={"part_ids": [part["id"]]}).json()

    assert read_log(user)[-1]["object_id"] == done["file"]["id"]


def test_keys_and_projects_are_in_the_log(user: TestClient, database: Database) -> None:
    other = add_key(database, "Other")
    project_id = user.get("/v1/organization/projects/Other").json()["id"]
    with database.writing() as session:
        assert revoke_key(session, read_key_id(other) or "", now=utc_now())
    user.post(f"/v1/organization/projects/{project_id}", json={"max_queued_jobs": 1})
    log = read_log(user, project_id=project_id)
    assert read_log(user, project_id="Other") == log
    user.delete(f"/v1/organization/projects/{project_id}")

    assert [event["type"] for event in log] == [
        "api_key.created",
        "api_key.revoked",
        "project.updated",
    ]
    assert user.get(LOG, params={"project_id": project_id}).status_code == 404
    erased = read_log(user)[-1]
    assert (erased["type"], erased["object_id"]) == ("project.erased", project_id)


def test_what_is_refused_is_not_in_the_log(user: TestClient) -> None:
    user.post(JOBS, json={"model": "tiny", "training_file": "file-none"})
    user.post(f"{JOBS}/ftjob-none/cancel")
    user.get("/v1/files/file-none/content")

    assert [event["type"] for event in read_log(user)] == ["api_key.created"]


def test_the_log_has_pages(user: TestClient) -> None:
    files = [upload(user) for _ in range(3)]

    first = user.get(LOG, params={"limit": 2}).json()
    rest = user.get(LOG, params={"limit": 2, "after": first["last_id"]}).json()

    shown = [event["object_id"] for event in first["data"] + rest["data"]]
    assert shown[:3] == files[::-1]
    assert (first["has_more"], rest["has_more"], len(shown)) == (True, False, 4)


def test_the_log_holds_neither_keys_nor_names_nor_data(user: TestClient, key: str) -> None:
    upload(user)

    answer = user.get(LOG).text

    assert key not in answer
    assert "secret-name" not in answer
    assert "To be" not in answer


def test_only_an_admin_reads_the_log(client: TestClient, database: Database) -> None:
    weak = add_key(database, scopes=set(Scope) - {Scope.ADMIN})

    assert client.get(LOG, headers=bearer(weak)).status_code == 403
