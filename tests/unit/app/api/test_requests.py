"""What holds for every request, whatever it asks for."""

import gzip
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from app.api import requests
from app.core import strict_json
from app.core.db.session import Database
from app.core.errors import OutcomeUnknownError
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.asgi import post_in_chunks
from tests.builders import TEXT_LINE, add_file, add_job, get_job, lock_out_writers


def test_every_answer_has_an_id_of_its_own(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/healthz", "/v1/files", "/v1/files/nope", "/nope")]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(one.startswith("req_") for one in ids)


def test_a_crash_is_an_envelope_whose_id_is_in_the_log(
    client: TestClient, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    app.state.resources = None  # whatever a route does now is a crash

    answer = client.get("/v1/files")

    request_id = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert answer.json() == {
        "error": {
            "message": f"The server failed on this request. Search its log for {request_id}.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    (record,) = [one for one in caplog.records if one.name == requests.__name__]
    assert record.levelno == logging.ERROR
    assert vars(record)["request_id"] == request_id
    assert record.exc_info is not None


def logged(caplog: pytest.LogCaptureFixture, path: str) -> logging.LogRecord:
    """The line that the log has about a request to this path."""
    lines = [one for one in caplog.records if one.name == "app.access"]
    (line,) = [one for one in lines if path in one.getMessage()]
    return line


def test_a_request_is_one_line_in_the_log_with_its_id(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    answer = client.get("/v1/files?purpose=fine-tune")
    client.get("/healthz")

    line = logged(caplog, "/v1/files")
    assert re.fullmatch(r"GET /v1/files 200 \d+ ms", line.getMessage())
    assert vars(line)["request_id"] == answer.headers["x-request-id"]
    assert "code" not in vars(line)
    assert not any(
        "/healthz" in one.getMessage() for one in caplog.records if one.name == "app.access"
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/files/file-1", 404), ("/v1/files?limit=0", 400), ("/v1/files/a%0Ab", 404), ("/x", 404)],
)
def test_the_line_of_a_refused_request_has_the_code_of_its_error(
    path: str, status: int, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    answer = client.get(path)

    line = logged(caplog, path.partition("?")[0])
    assert f" {status} " in line.getMessage()
    assert vars(line)["code"] == answer.json()["error"]["code"]
    assert "\n" not in line.getMessage()


def test_the_line_of_a_crash_has_its_code_too(
    client: TestClient, app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app.state.resources = None

    client.get("/v1/files")

    assert vars(logged(caplog, "/v1/files"))["code"] == "internal_error"


def test_bytes_that_are_lost_are_an_error_and_not_an_empty_file(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    file = add_file(database, store)
    store.delete(file.blob_key)

    answer = client.get(f"/v1/files/{file.id}/content")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


@pytest.fixture
def locked(
    client: TestClient, app: FastAPI, settings: Settings, database: Database
) -> Iterator[Database]:
    """A process that has the database for itself, while the API waits for nobody."""
    assert client.get("/readyz").status_code == 200
    impatient = Database(settings.resolved_database_url, busy_timeout_s=0)
    app.state.resources = replace(app.state.resources, database=impatient)
    with database.writing() as session:
        lock_out_writers(session)
        yield database
    impatient.dispose()


def test_a_busy_database_is_a_503_that_says_when_to_come_back(
    client: TestClient, database: Database, request: pytest.FixtureRequest
) -> None:
    job = add_job(database)
    request.getfixturevalue("locked")

    answer = client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {
        "error": {
            "message": "The database is busy. Nothing was done; send the request again in a "
            "moment.",
            "type": "server_error",
            "param": None,
            "code": "database_busy",
        }
    }


@pytest.mark.usefixtures("locked")
def test_an_upload_into_a_busy_database_leaves_nothing(
    client: TestClient, settings: Settings
) -> None:
    files = {"file": ("a.jsonl", TEXT_LINE)}

    answer = client.post("/v1/files", files=files, data={"purpose": "fine-tune"})

    assert answer.status_code == 503
    assert [path for path in settings.blobs_dir.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("locked")
def test_reading_goes_on_while_the_database_is_busy(client: TestClient) -> None:
    assert client.get("/v1/files").status_code == 200
    assert client.get("/readyz").status_code == 200


def test_what_may_have_been_done_is_not_repeated_by_official_clients(
    client: TestClient, app: FastAPI, database: Database
) -> None:
    job = add_job(database)

    def lose_the_connection(_connection: object) -> None:
        raise OutcomeUnknownError("It may have been done.")

    event.listen(app.state.resources.database.engine, "commit", lose_the_connection)
    answer = client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")

    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


def test_a_json_body_is_refused_before_it_fills_the_memory(app: FastAPI) -> None:
    chunks = (b"x" * 65_536 for _ in range(1000))

    answer = post_in_chunks(app, "/v1/fine_tuning/jobs", chunks, "application/json")

    assert answer.status == 413
    assert answer.bytes_taken < 2 * requests.MAX_JSON_BYTES


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param({f"k{i}": i for i in range(62_000)}, "30,000 values", id="values"),
        pytest.param({f"k{i}": i for i in range(1001)}, "1,000 keys", id="keys"),
        pytest.param(
            {"metadata": {str(i): i for i in range(1001)}},
            "1,000 keys in 'metadata'",
            id="inner keys",
        ),
        pytest.param({"method": json.loads("[" * 70 + "1" + "]" * 70)}, "64 levels", id="levels"),
    ],
)
def test_json_that_is_costly_to_check_is_refused(
    client: TestClient, body: dict[str, Any], why: str
) -> None:
    answer = client.post("/v1/fine_tuning/jobs", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "json_too_complex")
    assert why in error["message"]


def test_fifty_problems_of_a_body_are_listed_and_all_are_counted(client: TestClient) -> None:
    answer = client.post("/v1/fine_tuning/jobs", json={f"epoch{i}": i for i in range(60)})

    error = answer.json()["error"]
    assert len(error["errors"]) == 50
    assert error["error_count"] == 62  # with the two required fields
    assert "And 61 more" in error["message"]


def test_a_large_body_is_parsed_beside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, threads = strict_json.jiter.from_json, list[str]()

    def parse_and_note(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse(*args, **options)

    monkeypatch.setattr(strict_json.jiter, "from_json", parse_and_note)
    client.post("/v1/fine_tuning/jobs", json={"model": "a" * 100_000})

    assert [name.startswith("AnyIO worker thread") for name in threads] == [True]


def test_compressed_json_is_refused(client: TestClient) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}

    answer = client.post("/v1/fine_tuning/jobs", content=gzip.compress(b"{}"), headers=headers)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "'Content-Encoding: gzip'" in error["message"]


def test_cancelling_needs_no_body_and_no_content_type(
    client: TestClient, database: Database
) -> None:
    job = add_job(database)

    answer = client.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")

    assert answer.status_code == 200
    assert get_job(database, job.id).status == "cancelled"
