"""No web page is turned against the service, and nobody gets around the check of the key."""

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.core.access import Scope
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.asgi import stock_client
from tests.builders import TEXT_LINE, add_file, add_key, bearer

pytestmark = pytest.mark.only_sqlite

JOBS = "/v1/fine_tuning/jobs"


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:80", "localhost.", "[::1]:8000"],
)
def test_this_machine_is_addressed_by_any_of_its_names(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8000",
        "localhost@evil.example",
        "localhost, evil.example",
        "[::1",
        "0.0.0.0",  # noqa: S104 - a name, not an address to listen on
    ],
)
def test_a_foreign_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/v1/models", "/healthz", "/docs", "/openapi.json"):
        assert error_of(client.get(path, headers={"host": host})) == (403, "host_not_allowed")


def test_the_operator_adds_names(settings: Settings) -> None:
    changed = settings.model_copy(update={"allowed_hosts": "Tunery.example, b", "host": "::"})

    assert {"tunery.example", "b", "localhost"} < changed.host_names
    assert {"", "[::]", "evil.example"}.isdisjoint(changed.host_names)
    assert "10.0.0.5" in settings.model_copy(update={"host": "10.0.0.5"}).host_names


PAGES: dict[str, dict[str, str]] = {
    "another site": {"origin": "https://evil.example"},
    "another port": {"origin": "http://127.0.0.1:3000"},
    "a sandbox": {"origin": "null"},
    "an empty origin": {"origin": ""},
    "cross-site": {"sec-fetch-site": "cross-site"},
    "same-site": {"sec-fetch-site": "same-site"},
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("scopes", [[], [Scope.WRITE]], ids=["no key", "a key"])
def test_another_page_changes_nothing(
    client: TestClient, database: Database, page: str, scopes: list[Scope]
) -> None:
    headers = PAGES[page] | (bearer(add_key(database, scopes=scopes)) if scopes else {})

    for method in ("POST", "DELETE", "PUT", "PATCH", "NEW"):
        answer = client.request(method, f"{JOBS}/ftjob-1/cancel", headers=headers)

        assert error_of(answer) == (403, "cross_site_request")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="curl, or an SDK"),
        pytest.param(
            {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}, id="our own page"
        ),
        pytest.param({"sec-fetch-site": "none"}, id="typed by a person"),
    ],
)
def test_our_own_page_and_programs_are_served(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post(f"{JOBS}/ftjob-1/cancel", headers=headers)

    assert error_of(answer) == (404, "job_not_found")


@pytest.mark.parametrize("slash", ["%2F", "%2f"])
@pytest.mark.parametrize("tail", ["content", "", "content?x=1"])
def test_an_encoded_slash_reaches_no_other_route(
    client: TestClient, database: Database, store: LocalBlobStore, slash: str, tail: str
) -> None:
    file = add_file(database, store)

    answer = client.get(f"/v1/files/{file.id}{slash}{tail}")

    assert error_of(answer) == (404, "unknown_url")
    assert TEXT_LINE not in answer.content


def test_a_model_may_have_a_slash_in_its_name(client: TestClient) -> None:
    assert error_of(client.get("/v1/models/org%2Fname")) == (404, "model_not_found")


def test_a_key_is_needed_from_the_first_key_on(client: TestClient, database: Database) -> None:
    key = add_key(database, is_revoked=True)

    with_dummy = client.get("/v1/models", headers=bearer("unused"))

    assert error_of(with_dummy) == (401, "invalid_api_key")
    assert key not in with_dummy.text


def test_a_stranger_learns_only_that_the_service_runs(
    client: TestClient, database: Database
) -> None:
    key = add_key(database)

    answers = {path: client.get(path) for path in ("/healthz", "/readyz", "/openapi.json", "/docs")}

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(
        answers, 200
    )
    assert answers["/healthz"].json() == {"status": "ok"}
    assert answers["/readyz"].json() == {"status": "ready"}
    with_key = client.get("/readyz", headers=bearer(key)).json()
    details = {"workers", "queued_jobs", "free_bytes", "has_room", "store_answers"}
    assert with_key.keys() == {"status"} | details


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"openai-project": "proj_other"}, (401, "mismatched_project"), id="project"),
        pytest.param(
            {"openai-organization": "org-other"},
            (401, "mismatched_organization"),
            id="organization",
        ),
    ],
)
def test_headers_that_do_not_match_the_key_are_refused(
    client: TestClient, database: Database, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    key = bearer(add_key(database))

    assert error_of(client.get("/v1/models", headers=headers | key)) == expected


def test_a_client_that_is_set_up_for_openai_is_served_without_keys(client: TestClient) -> None:
    headers = {"openai-project": "proj_other", "openai-organization": "org-other"}

    assert client.get("/v1/models", headers=headers).status_code == 200


def test_the_stock_client_sends_a_key_and_understands_the_refusals(
    client: TestClient, database: Database
) -> None:
    key = add_key(database, scopes=[Scope.READ])
    with stock_client(client, is_strict=True) as stock:
        stock.api_key, stock.organization, stock.project = key, "org-tunery", "proj-default"
        listed = [model.id for model in stock.models.list()]
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            stock.files.create(file=("a.jsonl", TEXT_LINE), purpose="fine-tune")
        stock.api_key = f"{key[:-1]}x"
        with pytest.raises(openai.AuthenticationError) as unknown:
            stock.fine_tuning.jobs.list()

    assert "tiny" in listed
    assert forbidden.value.code == "insufficient_scope"
    assert unknown.value.code == "invalid_api_key"
