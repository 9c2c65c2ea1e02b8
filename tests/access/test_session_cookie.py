"""The cookie of a browser stands for a key in the requests of the service's own pages alone."""

from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.access import Scope
from app.core.access.api_keys import new_key
from app.core.clock import utc_now
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.session import Database
from app.core.ids import IdPrefix, new_id
from app.core.storage.local import LocalBlobStore
from tests.access.project_calls import World
from tests.builders import add_key, bearer
from tests.waiting import wait_until

pytestmark = pytest.mark.only_sqlite

SESSION = "/v1/session"
OWN = {"sec-fetch-site": "same-origin"}
SITES = ("same-origin", "same-site", "cross-site", "none", "absent")

TABLE = {
    #                    same-origin  same-site  cross-site  none       absent
    "bearer":           ("ok ok",     "ok 403",  "ok 403",   "ok ok",   "ok ok"),
    "cookie":           ("ok ok",     "401 403", "401 403",  "401 401", "401 401"),
    "both":             ("ok ok",     "ok 403",  "ok 403",   "ok ok",   "ok ok"),
    "none":             ("401 401",   "401 403", "401 403",  "401 401", "401 401"),
    "bad bearer":       ("401 401",   "401 403", "401 403",  "401 401", "401 401"),
    "empty bearer":     ("401 401",   "401 403", "401 403",  "401 401", "401 401"),
    "two cookies":      ("401 401",   "401 403", "401 403",  "401 401", "401 401"),
}  # fmt: skip
"""What happens to a request that reads and to one that changes something, by what it has beside
`Sec-Fetch-Site`. The last three have a good cookie too."""

REFUSED = {"401": (401, "invalid_api_key"), "403": (403, "cross_site_request")}


def cookie(key: str, *, name: str = "tunery_key") -> dict[str, str]:
    return {"cookie": f"theme=dark; {name}={key}"}


def credentials(kind: str, key: str) -> dict[str, str]:
    return {
        "bearer": bearer(key),
        "cookie": cookie(key),
        "both": bearer(key) | cookie(new_key(new_id(IdPrefix.KEY))),
        "none": {},
        "bad bearer": bearer(new_key(new_id(IdPrefix.KEY))) | cookie(key),
        "empty bearer": {"authorization": ""} | cookie(key),
        "two cookies": {"cookie": f"tunery_key={key}; tunery_key={key}"},
    }[kind]


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def world(database: Database, store: LocalBlobStore) -> World:
    return World(database, store)


@pytest.fixture
def key(database: Database) -> str:
    return add_key(database)


@pytest.mark.parametrize("kind", TABLE)
def test_only_a_page_of_the_service_is_served_by_its_cookie(
    client: TestClient, world: World, key: str, kind: str
) -> None:
    job = f"/v1/fine_tuning/jobs/{world.done.id}"
    reading = [job, f"{job}/adapter", f"{job}/events?stream=true", "/v1/organization/projects"]
    changing = [("POST", f"{job}/cancel"), ("DELETE", "/v1/files/file-1"), ("PUT", job)]
    requests = [("GET", path) for path in reading] + changing

    for (method, path), (site, expected) in product(requests, zip(SITES, TABLE[kind], strict=True)):
        headers = credentials(kind, key) | ({} if site == "absent" else {"sec-fetch-site": site})
        answer = client.request(method, path, headers=headers)
        said = expected.split()[method != "GET"]
        if said == "ok":
            assert answer.status_code in (200, 400, 404, 405), (method, path, site)
        else:
            assert error_of(answer) == REFUSED[said], (method, path, site)


def test_a_browser_signs_in_and_out(client: TestClient, database: Database) -> None:
    key = add_key(database, "Lab", scopes=[Scope.READ, Scope.WRITE])

    signed_in = client.post(SESSION, json={"key": f" {key}\n"}, headers=OWN)
    seen = client.get(SESSION, headers=OWN)
    signed_out = client.delete(SESSION, headers=OWN)
    after = client.get(SESSION, headers=OWN)

    assert signed_in.status_code == 200
    assert signed_in.json() == seen.json()
    assert seen.json()["project"]["name"] == "Lab"
    assert (seen.json()["scopes"], seen.json()["is_keyless"]) == (["read", "write"], False)
    assert seen.json()["key_id"].removeprefix("key_") == key.split("_")[1]
    assert signed_out.json() == {"object": "session.deleted", "deleted": True}
    assert error_of(after) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            {},
            "tunery_key={key}; HttpOnly; Max-Age=2592000; SameSite=strict",
            id="http on this machine",
        ),
        pytest.param(
            {"origin": "https://127.0.0.1"},
            "__Host-tunery_key={key}; HttpOnly; Max-Age=2592000; Path=/; SameSite=strict; Secure",
            id="https at a proxy",
        ),
    ],
)
def test_no_script_and_no_other_page_gets_the_cookie(
    client: TestClient, key: str, headers: dict[str, str], expected: str
) -> None:
    answer = client.post(SESSION, json={"key": key}, headers=OWN | headers)

    assert answer.headers.get_list("set-cookie") == [expected.format(key=key)]
    assert answer.headers["cache-control"] == "no-store"


def test_https_is_known_without_a_proxy_too(app: FastAPI, key: str) -> None:
    with TestClient(app, base_url="https://127.0.0.1") as client:
        client.post(SESSION, json={"key": key}, headers=OWN)
        kept = [each.name for each in client.cookies.jar]
        client.cookies.clear()
        plain = client.get(SESSION, headers=OWN | cookie(key))
        secure = client.get(SESSION, headers=OWN | cookie(key, name="__Host-tunery_key"))

    assert kept == ["__Host-tunery_key"]
    assert (plain.status_code, secure.status_code) == (401, 200)


def test_the_cookie_does_not_outlive_the_key(client: TestClient, database: Database) -> None:
    key = add_key(database, expires_at=utc_now() + timedelta(hours=1))

    set_cookie = client.post(SESSION, json={"key": key}, headers=OWN).headers["set-cookie"]

    seconds = int(set_cookie.partition("Max-Age=")[2].partition(";")[0])
    assert 3590 < seconds <= 3600


def test_signing_out_needs_no_valid_key(client: TestClient, database: Database) -> None:
    add_key(database)

    for headers in ({}, cookie("nonsense"), bearer("nonsense")):
        answer = client.delete(SESSION, headers=OWN | headers)
        cleared = answer.headers.get_list("set-cookie")
        assert answer.status_code == 200
        assert [each.partition("=")[0] for each in cleared] == ["__Host-tunery_key", "tunery_key"]
        assert all('=""; ' in each and "Max-Age=0" in each for each in cleared)


@pytest.mark.parametrize("site", ["none", "absent"])
def test_whoever_cannot_sign_in_learns_why(client: TestClient, key: str, site: str) -> None:
    headers = {} if site == "absent" else {"sec-fetch-site": site}

    answer = client.post(SESSION, json={"key": key}, headers=headers)

    assert error_of(answer) == (403, "sign_in_not_possible")
    assert "https" in answer.json()["error"]["message"]
    assert "ssh tunnel" in answer.json()["error"]["message"]
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_another_page_signs_nobody_in_or_out(client: TestClient, key: str, site: str) -> None:
    headers = {"sec-fetch-site": site}

    signed_in = client.post(SESSION, json={"key": key}, headers=headers)
    signed_out = client.delete(SESSION, headers=headers)

    assert error_of(signed_in) == error_of(signed_out) == (403, "cross_site_request")


BAD_KEYS = {
    "no key at all": ("hunter2", "malformed"),
    "unknown": (new_key(new_id(IdPrefix.KEY)), "not a key of this service"),
    "revoked": (None, "was revoked"),
    "expired": (None, "expired on"),
}


@pytest.mark.parametrize("kind", BAD_KEYS)
def test_a_bad_key_signs_nobody_in(client: TestClient, database: Database, kind: str) -> None:
    past = utc_now() - timedelta(seconds=1)
    made = {
        "revoked": add_key(database, is_revoked=True),
        "expired": add_key(database, expires_at=past),
    }
    key, why = BAD_KEYS[kind]

    answer = client.post(SESSION, json={"key": key or made[kind]}, headers=OWN)

    error = answer.json()["error"]
    assert (*error_of(answer), error["param"]) == (401, "invalid_api_key", "key")
    assert why in error["message"]
    assert "Sign in with a whole key" in error["message"]
    assert (key or made[kind]) not in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("body", [{}, {"key": ""}, {"key": 1}, {"key": "a" * 257}, {"token": "a"}])
def test_a_malformed_body_is_a_400(client: TestClient, key: str, body: dict[str, Any]) -> None:
    assert client.post(SESSION, json=body, headers=OWN).status_code == 400


def test_a_service_without_keys_signs_everybody_in_without_a_cookie(client: TestClient) -> None:
    expected = {
        "object": "session",
        "project": None,
        "scopes": sorted(Scope),
        "key_id": None,
        "is_keyless": True,
    }

    answer = client.post(SESSION, json={"key": "anything"}, headers=OWN)

    assert (answer.status_code, answer.json()) == (200, expected)
    assert "set-cookie" not in answer.headers
    assert client.get(SESSION).json() == expected


def test_a_revoked_key_is_refused_within_a_second(
    client: TestClient, database: Database, key: str
) -> None:
    client.post(SESSION, json={"key": key}, headers=OWN)
    assert client.get(SESSION, headers=OWN).status_code == 200
    with database.writing() as session:
        KeyRepository(session).revoke(f"key_{key.split('_')[1]}", now=utc_now())

    wait_until(lambda: client.get(SESSION, headers=OWN).status_code == 401, within_s=2)

    assert "was revoked" in client.get(SESSION, headers=OWN).json()["error"]["message"]


def test_a_cookie_reaches_only_the_project_of_its_key(
    client: TestClient, database: Database, world: World
) -> None:
    other = cookie(add_key(database, "Other", scopes=[Scope.READ])) | OWN
    job = f"/v1/fine_tuning/jobs/{world.done.id}"

    assert error_of(client.get(job, headers=other)) == (404, "job_not_found")
    assert error_of(client.delete(job, headers=other)) == (403, "insufficient_scope")
    mismatched = client.get("/v1/models", headers=other | {"openai-project": "proj-default"})
    assert error_of(mismatched) == (401, "mismatched_project")


def test_the_log_says_who_signs_in_and_never_shows_the_key(
    client: TestClient, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        client.post(SESSION, json={"key": key}, headers=OWN)
        client.get(SESSION, headers=OWN)
        client.delete(SESSION, headers=OWN)

    lines = [record for record in caplog.records if record.name == "app.access"]
    assert [line.__dict__.get("key_id") for line in lines] == [
        f"key_{key.split('_')[1]}",
        f"key_{key.split('_')[1]}",
        None,
    ]
    assert not any(key in f"{record.getMessage()}{record.__dict__}" for record in caplog.records)
