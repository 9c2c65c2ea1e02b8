"""Requests a minute: refused before a byte of the body is read, and counted for the admin."""

from http import HTTPStatus

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.repositories.projects.access import ProjectsRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Database
from tests.asgi import post_in_chunks, stock_client
from tests.builders import add_key, bearer

pytestmark = pytest.mark.only_sqlite


def limit(database: Database, name: str, per_minute: int) -> Project:
    with database.writing() as session:
        project = ProjectsRepository(session).get(name)
        project.max_requests_per_minute = per_minute
    return project


def test_a_project_that_asks_too_often_is_told_when_to_come_back(
    client: TestClient, database: Database
) -> None:
    key, second_key, other = (add_key(database, name) for name in ("A", "A", "B"))
    limit(database, "A", 3)

    answers = [client.get("/v1/files", headers=bearer(key)) for _ in range(3)]
    refused = client.get("/v1/files", headers=bearer(second_key))

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert "x-should-retry" not in refused.headers
    assert client.get("/v1/files", headers=bearer(other)).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_an_answer_that_could_be_reused_counts_too(client: TestClient, database: Database) -> None:
    key = add_key(database, "A")
    limit(database, "A", 2)

    statuses = [
        client.get("/v1/fine_tuning/jobs", headers=bearer(key)).status_code for _ in range(3)
    ]

    assert statuses == [200, 200, 429]


def test_no_byte_of_a_refused_body_is_read(
    app: FastAPI, client: TestClient, database: Database
) -> None:
    key = add_key(database, "A")
    limit(database, "A", 1)
    client.get("/v1/files", headers=bearer(key))
    chunks = (b"x" * 65536 for _ in range(3))

    answer = post_in_chunks(app, "/v1/files", chunks, "multipart/form-data", bearer(key))

    assert (answer.status, answer.bytes_taken) == (429, 0)


def test_the_stock_client_comes_back_by_itself(client: TestClient, database: Database) -> None:
    key = add_key(database, "A")
    limit(database, "A", 60)  # one more each second
    while client.get("/v1/files", headers=bearer(key)).status_code == HTTPStatus.OK:
        pass

    with stock_client(client, is_strict=True) as stock:
        patient = stock.with_options(api_key=key, max_retries=2)
        answer = patient.files.with_raw_response.list()

    assert answer.status_code == HTTPStatus.OK
    assert answer.retries_taken >= 1


def test_requests_are_counted_for_their_project(app: FastAPI, database: Database) -> None:
    keys = [add_key(database, name) for name in ("A", "A", "B")]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for key in keys * 3:
            client.get("/v1/files", headers=bearer(key))

    with database.reading() as session:
        used = [
            UsageRepository(session, ProjectsRepository(session).get(name).id)
            .measure(now=utc_now())
            .requests
            for name in ("A", "B")
        ]
    assert used == [6, 3]
