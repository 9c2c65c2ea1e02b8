"""Every route, with every kind of credentials: deny by default."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from app.api.access import PolicyMissingError, PolicyRoute, require_policies
from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.access.api_keys import new_key, read_key_id
from app.core.clock import utc_now
from app.core.db.session import Database
from app.core.ids import IdPrefix, new_id
from app.core.storage.local import LocalBlobStore
from tests.access.operations import ANY_KEY, CLOSED, OPERATIONS, Operation
from tests.access.project_calls import OTHER_PROJECT, World
from tests.asgi import post_in_chunks
from tests.builders import add_key, bearer

pytestmark = pytest.mark.only_sqlite

Headers = dict[str, str]


def _same_id_other_secret(database: Database) -> str:
    return new_key(read_key_id(add_key(database)) or "")


def browser(key: str, *, site: str = "same-origin") -> Headers:
    """The headers of a page of the service after a sign-in."""
    return {"cookie": f"tunery_key={key}"} | ({"sec-fetch-site": site} if site else {})


NOT_A_KEY: dict[str, Callable[[Database], Headers]] = {
    "no header": lambda _: {},
    "an empty header": lambda _: {"authorization": ""},
    "another scheme": lambda database: {"authorization": f"Basic {add_key(database)}"},
    "no secret": lambda _: {"authorization": "Bearer "},
    "a key of OpenAI's": lambda _: bearer("sk-proj-abcdefghijklmnopqrstuvwxyz"),
    "a wrong checksum": lambda database: bearer(add_key(database)[:-1] + "x"),
    "a key that never was": lambda _: bearer(new_key(new_id(IdPrefix.KEY))),
    "another secret": lambda database: bearer(_same_id_other_secret(database)),
    "a cookie, and no word of a page of ours": lambda database: browser(add_key(database), site=""),
    "a cookie with an unknown key": lambda _: browser(new_key(new_id(IdPrefix.KEY))),
    "a cookie, and an empty header": lambda database: (
        {"authorization": ""} | browser(add_key(database))
    ),
    "two keys": lambda database: bearer(f"{add_key(database)}, Bearer {add_key(database)}"),
    "revoked": lambda database: bearer(add_key(database, is_revoked=True)),
    "expired": lambda database: bearer(
        add_key(database, expires_at=utc_now() - timedelta(seconds=1))
    ),
}


@pytest.fixture
def world(database: Database, store: LocalBlobStore) -> World:
    """With keys, so that every request needs one."""
    add_key(database)
    return World(database, store)


def ids_of(world: World) -> dict[str, str]:
    """One that exists, for every parameter of a path."""
    return {
        "file_id": world.file.id,
        "job_id": world.done.id,
        "upload_id": world.upload.id,
        "model": world.model.id,
        "endpoint_id": world.endpoint.id,
        "sweep_id": world.sweep.id,
        "project_id": OTHER_PROJECT,
        "api_key_id": new_id(IdPrefix.KEY),
    }


def send(client: TestClient, operation: Operation, world: World, headers: Headers) -> Any:
    return client.request(
        operation.method, operation.url(ids_of(world)), headers=headers, **operation.body()
    )


def test_without_a_valid_key_every_route_answers_401(
    client: TestClient, database: Database, world: World
) -> None:
    for name, make in NOT_A_KEY.items():
        headers = make(database)
        for each in CLOSED:
            answer = send(client, each, world, headers)
            said = (answer.status_code, answer.json()["error"]["code"])
            assert said == (401, "invalid_api_key"), (name, each.name)
            assert answer.headers["www-authenticate"] == "Bearer"


def test_without_the_scope_every_route_answers_403(
    client: TestClient, database: Database, world: World
) -> None:
    keys = {scope: add_key(database, scopes=set(Scope) - {scope}) for scope in Scope}

    for each in CLOSED:
        if each.scope == ANY_KEY:
            continue
        answer = send(client, each, world, bearer(keys[Scope(each.scope)]))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "insufficient_scope"), each.name
        assert f"'{each.scope}'" in error["message"]


def test_a_key_of_another_project_finds_nothing(
    client: TestClient, database: Database, world: World
) -> None:
    other = bearer(add_key(database, "Other"))

    for each in CLOSED:
        if each.scope in (Scope.ADMIN, ANY_KEY):  # of every project, or of none
            continue
        answer = send(client, each, world, other)
        if "{" in each.path:
            assert answer.status_code == 404, (each.name, answer.text)
        elif each.method == "GET":
            assert not any(known in answer.text for known in ids_of(world).values()), each.name


@pytest.mark.parametrize("sent_as", [bearer, browser], ids=["header", "cookie"])
def test_the_right_key_is_served_everywhere(
    client: TestClient, database: Database, world: World, sent_as: Callable[[str], Headers]
) -> None:
    key = sent_as(add_key(database))

    refused = {
        each.name: answer.text
        for each in CLOSED
        if (answer := send(client, each, world, key)).status_code in (401, 403, 405)
    }

    assert refused == {}


def test_only_these_are_open() -> None:
    assert {each.name for each in OPERATIONS if each.scope is None} == {
        "GET /healthz",
        "GET /readyz",
        "POST /v1/session",
        "DELETE /v1/session",
    }


def test_the_scope_to_write_is_needed_to_change_anything() -> None:
    assert {(each.method, each.scope) for each in CLOSED} == {
        ("GET", ANY_KEY),
        ("GET", "read"),
        ("POST", "write"),
        ("POST", "sample"),
        ("DELETE", "write"),
        *((method, "admin") for method in ("GET", "POST", "DELETE")),
    }


def test_what_is_no_route_is_not_open_either(client: TestClient, world: World) -> None:
    for path in ("/v1", "/v1/nope", "/v1/files", "/v1//files", "/docs/nope", "/jobs"):
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"):
            assert client.request(method, path).status_code == 401, (method, path)


@pytest.mark.parametrize("refused", ["no key", "no scope"])
def test_no_byte_of_a_body_is_read_before_the_key_is_known(
    app: FastAPI, client: TestClient, database: Database, world: World, refused: str
) -> None:
    key = add_key(database, scopes=[Scope.READ])
    headers = bearer(key) if refused == "no scope" else {}
    for each in CLOSED:
        if each.method == "POST":
            path = each.url(ids_of(world))
            chunks = (b"x" * 65536 for _ in range(3))
            answer = post_in_chunks(app, path, chunks, "application/json", headers)
            assert (answer.status, answer.bytes_taken) == (403 if headers else 401, 0), each.name


def test_a_route_without_a_policy_fails_the_build() -> None:
    async def forgotten() -> None: ...

    with pytest.raises(PolicyMissingError, match="/forgotten"):
        APIRouter(route_class=PolicyRoute).get("/forgotten")(forgotten)

    app = FastAPI(openapi_url=None)
    router = APIRouter()
    router.get("/forgotten")(forgotten)
    app.include_router(router, prefix="/v1")
    with pytest.raises(PolicyMissingError, match="/v1/forgotten"):
        require_policies(app)


def test_a_mounted_application_without_a_policy_fails_the_build() -> None:
    app = FastAPI(openapi_url=None)
    app.mount("/metrics", FastAPI())

    with pytest.raises(PolicyMissingError, match="/metrics"):
        require_policies(app)


def test_a_project_is_named_by_its_id_or_its_name(client: TestClient, database: Database) -> None:
    key = bearer(add_key(database, DEFAULT_PROJECT_ID))

    answers = [
        client.get("/v1/models", headers=key | {"openai-project": project}).status_code
        for project in (DEFAULT_PROJECT_ID, "Default project")
    ]

    assert answers == [200, 200]
