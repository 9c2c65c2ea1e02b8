"""What is answered at an address that no route has."""

import json
import re
from pathlib import Path

import openai
import pytest
from starlette.testclient import TestClient

_CALL = re.compile(
    r'(?:self\._(?:get|post|put|patch|delete|get_api_list)\(|path_template\()\s*"(/[^"?]*)'
)
pytestmark = pytest.mark.only_sqlite

OFFERED = ("/files", "/fine_tuning/jobs", "/models", "/uploads", "/webhook_e")
OPENAIS = sorted(
    {
        re.sub(r"\{\w+\}", "x1", path)
        for source in Path(openai.__file__).with_name("resources").rglob("*.py")
        for path in _CALL.findall(source.read_text("utf-8"))
    }
)
"""Every path that the official client can ask for."""

_DOCUMENT = json.loads((Path(__file__).parents[4] / "openapi.json").read_bytes())
_WHOLE = [path for path in _DOCUMENT["paths"] if path.startswith("/v1/") and "{" not in path]
_BASES = [path for path in _WHOLE if not path.endswith("/estimate")]
"""Estimates lie below the paths of jobs and sweeps."""
WHAT_THERE_IS = (
    f"This service offers {', '.join(_BASES)} and the paths below them. "
    "See docs/api.md, or /docs on the service itself."
)


def test_every_path_of_openais_is_offered_or_said_not_to_be(client: TestClient) -> None:
    offered = {re.sub(r"\{\w+\}", "x1", path.removeprefix("/v1")) for path in _DOCUMENT["paths"]}
    not_offered = [path for path in OPENAIS if path not in offered and not path.startswith(OFFERED)]
    answers = {
        f"{method} {path}": client.request(method, f"/v1{path}")
        for path in not_offered
        for method in ("GET", "POST")
    }

    assert {"/embeddings", "/responses/x1", "/batches", "/evals"} < set(not_offered)
    assert "/fine_tuning/checkpoints/x1/permissions" in not_offered
    wrong = {
        asked: answer.text
        for asked, answer in answers.items()
        if (answer.status_code, answer.json()["error"]["code"]) != (404, "not_offered")
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        pytest.param(
            "/v1/embeddings",
            "not_offered",
            "{method} /v1/embeddings is part of OpenAI's API and is not offered here. "
            f"{WHAT_THERE_IS}",
            id="not offered",
        ),
        pytest.param(
            "/embeddings",
            "not_offered",
            "{method} /embeddings is part of OpenAI's API and is not offered here. "
            f"{WHAT_THERE_IS} Add /v1 to the base URL of your client.",
            id="not offered, and without /v1",
        ),
        pytest.param(
            "/fine_tuning/jobs",
            "unknown_url",
            "No such route: {method} /fine_tuning/jobs. Add /v1 to the base URL of your client: "
            "the path is /v1/fine_tuning/jobs.",
            id="without /v1",
        ),
        pytest.param(
            "/models/ft:tiny:tunery::x",
            "unknown_url",
            "No such route: {method} /models/ft:tiny:tunery::x. Add /v1 to the base URL of your "
            "client: the path is /v1/models/ft:tiny:tunery::x.",
            id="without /v1, and with an id",
        ),
        pytest.param(
            "/v1/fine_tuning/jobs/",
            "unknown_url",
            "No such route: {method} /v1/fine_tuning/jobs/. Remove the slash at the end of the "
            "path.",
            id="slash at the end",
        ),
        *(
            pytest.param(
                path,
                "unknown_url",
                f"No such route: {{method}} {path}. {WHAT_THERE_IS}",
                id=path,
            )
            for path in ("/v1", "/v1/", "/admin", "/v1/chats", "/v1/filesystem", "/v1/v1")
        ),
    ],
)
def test_a_missing_route_is_explained(
    client: TestClient, path: str, code: str, message: str
) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = client.request(method, path)

        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": message.format(method=method),
            "type": "invalid_request_error",
            "param": None,
            "code": code,
        }


def test_a_long_address_is_not_repeated_whole(client: TestClient) -> None:
    message = client.get("/v1/" + "x" * 5000).json()["error"]["message"]

    assert len(message) < 600


def test_the_stock_client_is_told_what_is_not_offered(strict: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not offered here") as caught:
        strict.embeddings.create(model="tiny", input="Ahoy?")

    assert caught.value.code == "not_offered"
