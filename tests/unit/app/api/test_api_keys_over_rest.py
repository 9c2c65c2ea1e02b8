"""Admins list, create and revoke keys over the API, as OpenAI's client does."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.access.api_keys import read_key_id
from app.core.clock import utc_now
from app.core.db.session import Database
from tests.asgi import stock_client
from tests.builders import add_key, add_project, bearer, dump_tables

OTHER = "proj-other"
KEYS = f"/v1/organization/projects/{OTHER}/api_keys"


@pytest.fixture
def admin_key(database: Database) -> str:
    add_project(database, OTHER)
    return add_key(database, scopes=[Scope.ADMIN])


@pytest.fixture
def admin(client: TestClient, admin_key: str) -> TestClient:
    """Sends the key of an admin of another project."""
    client.headers |= bearer(admin_key)
    return client


def create(admin: TestClient, **body: Any) -> dict[str, Any]:
    answer = admin.post(KEYS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_created_key_is_shown_once_and_works(admin: TestClient, database: Database) -> None:
    made = create(admin, scopes=["read"], expires_in_days=90)
    key = made.pop("value")

    used = admin.get("/v1/session", headers=bearer(key)).json()
    assert (used["project"]["id"], used["scopes"], used["key_id"]) == (OTHER, ["read"], made["id"])
    shown = admin.get(f"{KEYS}/{made['id']}")
    assert shown.json() | {"last_used_at": None} == made
    assert made["expires_at"] - made["created_at"] == timedelta(days=90).total_seconds()
    assert made["redacted_value"] == f"{'_'.join(key.split('_')[:2])}_***"
    secret = key.split("_")[2]
    assert secret not in shown.text
    assert secret not in admin.get(KEYS).text
    assert secret not in repr(dump_tables(database))


def test_a_key_may_read_and_write_if_nothing_else_is_said(admin: TestClient) -> None:
    made = create(admin)

    assert made["scopes"] == ["read", "sample", "write"]
    assert (made["expires_at"], made["last_used_at"], made["revoked_at"]) == (None, None, None)


def test_openais_client_lists_shows_and_revokes_keys(
    admin: TestClient, admin_key: str, database: Database
) -> None:
    ids = [read_key_id(add_key(database, OTHER)) for _ in range(3)]
    with stock_client(admin, is_strict=True) as stock:
        stock.admin_api_key = admin_key
        keys = stock.admin.organization.projects.api_keys
        listed = [key.id for key in keys.list(OTHER, limit=2)]
        gone = keys.delete(ids[0] or "", project_id=OTHER)
        shown = keys.retrieve(ids[0] or "", project_id=OTHER)

    assert listed == ids[::-1]
    assert (gone.id, gone.deleted) == (ids[0], True)
    assert (shown.name, shown.owner_project_access) == (ids[0], "inactive")


def test_a_revoked_key_stays_in_the_list(admin: TestClient) -> None:
    made = create(admin)

    answer = admin.delete(f"{KEYS}/{made['id']}")

    assert answer.json() == {
        "id": made["id"],
        "object": "organization.project.api_key.deleted",
        "deleted": True,
    }
    (listed,) = admin.get(KEYS).json()["data"]
    assert listed["revoked_at"] is not None
    assert listed["owner_project_access"] == "inactive"


def test_an_expired_key_is_inactive(admin: TestClient, database: Database) -> None:
    add_key(database, OTHER, expires_at=utc_now() - timedelta(seconds=1))

    (listed,) = admin.get(KEYS).json()["data"]

    assert (listed["owner_project_access"], listed["revoked_at"]) == ("inactive", None)


def test_both_are_in_the_audit_trail(admin: TestClient, admin_key: str) -> None:
    made = create(admin)
    admin.delete(f"{KEYS}/{made['id']}")

    log = admin.get("/v1/organization/audit_logs", params={"project_id": OTHER}).json()["data"]

    assert [(event["type"], event["object_id"]) for event in log] == [
        ("api_key.revoked", made["id"]),
        ("api_key.created", made["id"]),
    ]
    assert {event["key_id"] for event in log} == {read_key_id(admin_key)}
    assert all(event["request_id"].startswith("req_") for event in log)


def test_a_key_cannot_revoke_itself(admin: TestClient, admin_key: str) -> None:
    own = f"/v1/organization/projects/{DEFAULT_PROJECT_ID}/api_keys/{read_key_id(admin_key)}"

    assert error_of(admin.delete(own)) == (400, "api_key_in_use")
    assert admin.get(own).json()["owner_project_access"] == "active"


def test_a_key_is_found_only_in_its_project(admin: TestClient, admin_key: str) -> None:
    wrong = f"{KEYS}/{read_key_id(admin_key)}"

    for method in ("GET", "DELETE"):
        assert error_of(admin.request(method, wrong)) == (404, "api_key_not_found")


def test_a_project_is_not_made_for_a_key(admin: TestClient) -> None:
    answer = admin.post("/v1/organization/projects/nobody/api_keys", json={})

    assert error_of(answer) == (404, "project_not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["read", "everything"]},
        {"scopes": "read"},
        {"expires_in_days": 0},
        {"expires_in_days": 1.5},
        {"expires_in_days": 10**9},
        {"name": "laptop"},
    ],
)
@pytest.mark.only_sqlite
def test_a_bad_request_creates_nothing(admin: TestClient, body: dict[str, Any]) -> None:
    assert admin.post(KEYS, json=body).status_code == 400
    assert admin.get(KEYS).json()["data"] == []


def test_the_api_does_not_create_the_first_key(client: TestClient, database: Database) -> None:
    add_project(database, OTHER)

    answer = client.post(KEYS, json={"scopes": ["admin"]})

    assert error_of(answer) == (400, "no_api_keys_yet")
    assert "tunery keys create" in answer.json()["error"]["message"]
    assert client.get("/v1/session").json()["is_keyless"] is True
