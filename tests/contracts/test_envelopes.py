"""Every route that there is answers every error in OpenAI's form; a new route is tested unasked."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.settings import Settings
from app.schemas.bodies import ErrorRead

DOCUMENT = json.loads((Path(__file__).parents[2] / "openapi.json").read_bytes())
OPERATIONS = [
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
]
"""Method and path; `test_openapi.py` sees to it that they are those of the application."""

SWEEP = {"model": "m", "training_file": "file-1", "sweep": {"grid": {"n_epochs": [1]}}}
UPLOAD = {"bytes": 1, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
EVENT_TYPE = "fine_tuning.job.succeeded"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "json": {"model": "ft:tiny", "messages": [{"role": "user", "content": "Hi"}]}
    },
    "/v1/completions": {"json": {"model": "ft:tiny", "prompt": "Hi"}},
    "/v1/files": {
        "files": {"file": ("a.jsonl", b'{"text": "a"}')},
        "data": {"purpose": "fine-tune"},
    },
    "/v1/files/{file_id}/preview": {"params": {"model": "tiny"}},
    "/v1/fine_tuning/jobs": {"json": {"model": "tiny", "training_file": "file-1"}},
    "/v1/fine_tuning/jobs/estimate": {"json": {"model": "tiny", "training_file": "file-1"}},
    "/v1/models": {"files": {"file": ("a.zip", b"PK")}, "data": {"base_model": "tiny"}},
    "/v1/organization/projects/{project_id}": {"json": {}},
    "/v1/organization/projects/{project_id}/api_keys": {"json": {}},
    "/v1/responses": {"json": {"model": "ft:tiny", "input": "Hi"}},
    "/v1/session": {"json": {"key": "unused"}},
    "/v1/fine_tuning/sweeps": {"json": SWEEP},
    "/v1/fine_tuning/sweeps/estimate": {"json": SWEEP},
    "/v1/uploads": {"json": UPLOAD},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": []}},
    "/v1/uploads/{upload_id}/parts": {"files": {"data": b"a"}},
    "/v1/webhook_endpoints": {
        "json": {"name": "a", "url": "https://a.example", "event_types": [EVENT_TYPE]}
    },
    "/v1/webhook_endpoints/{endpoint_id}": {"json": {"name": "a"}},
    "/v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": EVENT_TYPE}},
}
"""A valid request for each route that needs more than its path, as options of a client."""

PATHS = sorted(DOCUMENT["paths"])
NEED_NOTHING = {"/healthz", "/v1/session", "/v1/webhook_event_types"}
"""What is answered without a database and without a blob store."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """What allows the body of a webhook endpoint."""
    return settings.model_copy(update={"webhook_targets": "public"})


def check(answer: Any, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    error = ErrorRead.model_validate(answer.json()).error
    assert error.type == ("server_error" if status >= 500 else "invalid_request_error")
    assert error.message
    assert error.code


@pytest.mark.parametrize(("method", "path"), [one for one in OPERATIONS if "{" in one[1]])
def test_what_does_not_exist_is_a_404(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, re.sub(r"\{.*?\}", "nope", path), **BODIES.get(path, {}))

    check(answer, 404)


@pytest.mark.parametrize("path", PATHS)
def test_a_method_that_a_route_does_not_have_is_a_405(client: TestClient, path: str) -> None:
    answer = client.request("PATCH", re.sub(r"\{.*?\}", "nope", path))

    check(answer, 405)
    assert answer.headers["allow"]


@pytest.fixture
def lost_disk(client: TestClient, app: FastAPI, settings: Settings) -> None:
    """From now on there is neither a database nor a place for files."""
    assert client.get("/readyz").status_code == 200
    app.state.resources.database.dispose()
    shutil.rmtree(settings.blobs_dir)
    (settings.data_dir / "tunery.db").unlink()
    (settings.data_dir / "tunery.db").mkdir()


@pytest.mark.only_sqlite
@pytest.mark.usefixtures("lost_disk")
@pytest.mark.parametrize(
    ("method", "path"), [one for one in OPERATIONS if one[1] not in NEED_NOTHING]
)
def test_a_failure_of_the_service_is_a_500(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, re.sub(r"\{.*?\}", "nope", path), **BODIES.get(path, {}))

    check(answer, 500)
