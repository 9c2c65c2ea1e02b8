"""Who has an answer already is told that it is the same, if they may read it at all."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.access import Scope
from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.asgi import stock_client
from tests.builders import add_job, add_key, add_succeeded_job, bearer, claim

JOBS = "/v1/fine_tuning/jobs"


@pytest.mark.parametrize(
    "path", ["", "/{id}", "/{id}/events", "/{id}/checkpoints", "/{id}/metrics"]
)
def test_what_a_job_shows_has_a_tag(
    client: TestClient, database: Database, store: LocalBlobStore, path: str
) -> None:
    url = JOBS + path.format(id=add_succeeded_job(database, store).id)
    whole = client.get(url)

    same = client.get(url, headers={"If-None-Match": whole.headers["etag"]})

    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == whole.headers["etag"]
    assert same.headers["x-request-id"].startswith("req_")
    for name in ("cache-control", "content-security-policy", "x-content-type-options"):
        assert same.headers[name] == whole.headers[name]
    assert same.headers["cache-control"] == "private, no-cache"


def test_the_tag_of_a_job_changes_with_it(client: TestClient, database: Database) -> None:
    url = f"{JOBS}/{add_job(database).id}"
    known = {"If-None-Match": client.get(url).headers["etag"]}

    unchanged = client.get(url, headers=known)
    claim(database)
    changed = client.get(url, headers=known)

    assert unchanged.status_code == 304
    assert (changed.status_code, changed.json()["status"]) == (200, "running")


def test_another_project_learns_nothing_from_a_tag(client: TestClient, database: Database) -> None:
    owner, other = add_key(database), add_key(database, "other")
    writer = add_key(database, scopes=[Scope.WRITE])
    url = f"{JOBS}/{add_job(database).id}"
    answer = client.get(url, headers=bearer(owner))
    ours = answer.headers["etag"]
    theirs = client.get(JOBS, headers=bearer(owner)).headers["etag"]

    def ask(path: str, tag: str, **credentials: Any) -> int:
        return client.get(path, headers={"If-None-Match": tag, **credentials}).status_code

    for tag in (ours, "*"):
        assert ask(url, tag, **bearer(owner)) == 304
        assert ask(url, tag, **bearer(other)) == 404
        assert ask(url, tag, **bearer(writer)) == 403
        assert ask(url, tag) == 401
    assert ask(JOBS, theirs, **bearer(owner)) == 304
    assert ask(JOBS, theirs, **bearer(other)) == 200


def test_a_head_is_refused_as_before(client: TestClient, database: Database) -> None:
    url = f"{JOBS}/{add_job(database).id}"

    assert client.head(url, headers={"If-None-Match": "*"}).status_code == 405


def test_what_is_no_read_has_no_tag(client: TestClient, database: Database) -> None:
    url = f"{JOBS}/{add_job(database).id}"

    paused = client.post(f"{url}/pause", headers={"If-None-Match": "*"})

    assert paused.status_code == 200
    assert "etag" not in paused.headers


def test_the_stock_client_can_ask_whether_a_job_has_changed(
    app: FastAPI, client: TestClient, database: Database
) -> None:
    job = add_job(database)
    jobs = stock_client(client, is_strict=True).fine_tuning.jobs
    raw = jobs.with_raw_response.retrieve(job.id)

    assert raw.parse().id == job.id
    assert raw.headers["etag"]
    assert [jobs.retrieve(job.id).status for _ in range(2)] == ["queued", "queued"]
