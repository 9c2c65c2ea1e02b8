"""What an admin sees of projects, what he can limit, and that an erased project is gone."""

from typing import Any, Protocol

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, Scope
from app.core.clock import utc_now
from app.core.db.base import Base
from app.core.db.project_tables import ApiKey
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.repositories.projects.access import ProjectsRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.repositories.queue import Turns
from app.core.db.session import Database
from app.core.errors import LeaseLostError, StateConflictError
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.schemas.organization.projects import ProjectErased
from app.services.projects import erase_project, get_project
from tests.builders import (
    MINUTE,
    NOW,
    TEXT_LINE,
    add_file,
    add_job,
    add_key,
    add_part,
    add_project,
    add_succeeded_job,
    add_tokens,
    bearer,
    build_saved_state,
    build_upload,
    claim,
    dump_tables,
    list_blobs,
    put_blob,
)

PROJECTS = "/v1/organization/projects"
OTHER = "proj-other"


@pytest.fixture
def admin(database: Database) -> dict[str, str]:
    """The headers of an admin, whose key belongs to the default project."""
    return bearer(add_key(database, scopes=[Scope.ADMIN]))


class Erase(Protocol):
    def __call__(self, project: str, **changes: Any) -> ProjectErased: ...


@pytest.fixture
def erase(database: Database, store: LocalBlobStore, settings: Settings) -> Erase:
    """Erases a project as the command line does."""

    def act(project: str, **changes: Any) -> ProjectErased:
        options: dict[str, Any] = {"read": database.read, "write": database.transact}
        options |= {"store": store, "settings": settings, "by": None, "now": NOW}
        return erase_project(project, **(options | changes))

    return act


def fill(database: Database, store: LocalBlobStore, project_id: str) -> None:
    """Something in every table that a job, a file or a key leads to, and a job that runs."""
    with database.writing() as session:
        UsageRepository(session, project_id).add(processor_s=1.0, requests=2, now=utc_now())
    add_succeeded_job(database, store, project_id=project_id)
    running = add_job(database, project_id=project_id, priority=9)
    claim(database)
    put_blob(store, f"states/{running.id}", b"state")
    files = {"state": {"key": f"states/{running.id}", "bytes": 5, "sha256": "0" * 64}}
    with database.writing() as session:
        session.add(build_saved_state(running.id, 1, files, project_id=project_id))
    add_tokens(database, running, store, f"tokens/{running.id}")
    add_job(database, project_id=project_id)
    add_file(database, store, project_id=project_id)
    add_part(database, store, build_upload(project_id=project_id))
    add_key(database, project_id)


def rows_of(database: Database, project_id: str) -> dict[str, int]:
    """Number of rows that name the project, by table."""
    with database.reading() as session:
        counts = {
            table.name: len(
                session.execute(select(table).where(table.c.project_id == project_id)).all()
            )
            for table in Base.metadata.sorted_tables
            if "project_id" in table.c
        }
    return {name: count for name, count in counts.items() if count}


def test_an_admin_lists_and_limits_projects(
    client: TestClient, database: Database, admin: dict[str, str]
) -> None:
    add_project(database, OTHER)
    limits = {"max_queued_jobs": 3, "job_retention_days": 30}

    changed = client.post(f"{PROJECTS}/{OTHER}", json=limits, headers=admin).json()
    more = client.post(f"{PROJECTS}/{OTHER}", json={"max_queued_jobs": None}, headers=admin).json()
    listed = client.get(PROJECTS, headers=admin).json()["data"]

    assert (changed["max_queued_jobs"], changed["job_retention_days"]) == (3, 30)
    assert (more["max_queued_jobs"], more["job_retention_days"]) == (None, 30)
    assert [each["id"] for each in listed] == [DEFAULT_PROJECT_ID, OTHER]
    assert client.get(f"{PROJECTS}/{OTHER}", headers=admin).json() == more


@pytest.mark.parametrize(
    "body",
    [
        {"max_queued_jobs": -1},
        {"max_queued_jobs": 2**40},
        {"max_queued_jobs": "3"},
        {"max_processor_hours": 1e300},
        {"max_requests_per_minute": 0},
        {"name": "x"},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    client: TestClient, admin: dict[str, str], body: dict[str, Any]
) -> None:
    answer = client.post(f"{PROJECTS}/{DEFAULT_PROJECT_ID}", json=body, headers=admin)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(body))


def test_an_admin_sees_what_a_project_uses(
    client: TestClient, database: Database, store: LocalBlobStore, admin: dict[str, str]
) -> None:
    add_project(database, OTHER)
    with database.writing() as session:
        UsageRepository(session, OTHER).add(processor_s=1.5, requests=2, now=utc_now())
    add_tokens(database, add_job(database, project_id=OTHER))
    add_file(database, store, project_id=OTHER)

    usage = client.get(f"{PROJECTS}/{OTHER}/usage", headers=admin).json()

    assert usage == {
        "object": "organization.project.usage",
        "project_id": OTHER,
        "month": f"{utc_now():%Y-%m}",
        "stored_bytes": 2 * len(TEXT_LINE),
        "jobs": {"queued": 1},
        "processor_seconds": 1.5,
        "requests": 2,
    }


def test_an_unknown_project_is_not_found(client: TestClient, admin: dict[str, str]) -> None:
    answers = [
        client.get(f"{PROJECTS}/proj-none", headers=admin),
        client.get(f"{PROJECTS}/proj-none/usage", headers=admin),
        client.post(f"{PROJECTS}/proj-none", json={}, headers=admin),
        client.delete(f"{PROJECTS}/proj-none", headers=admin),
    ]

    assert {(each.status_code, each.json()["error"]["code"]) for each in answers} == {
        (404, "project_not_found")
    }


def test_an_erased_project_leaves_no_row_and_no_byte(
    client: TestClient, database: Database, store: LocalBlobStore, admin: dict[str, str]
) -> None:
    add_project(database, OTHER)
    fill(database, store, OTHER)
    with database.reading() as session:
        stored_bytes = UsageRepository(session, OTHER).stored_bytes()
    before, blobs = rows_of(database, OTHER), list_blobs(store)

    answer = client.delete(f"{PROJECTS}/{OTHER}", headers=admin)

    erased = answer.json()
    assert answer.status_code == 200, answer.text
    before["events"] += 1  # the running job was cancelled
    assert erased["rows"].items() >= before.items()
    assert set(before) >= {"jobs", "files", "events", "api_keys", "saved_states", "uploads"}
    assert (erased["blobs"], erased["bytes"]) == (len(blobs), stored_bytes)
    assert (rows_of(database, OTHER), list_blobs(store)) == ({}, [])
    everything = repr(dump_tables(database) | {"audit_events": ""})
    assert OTHER not in everything
    assert client.get(f"{PROJECTS}/{OTHER}", headers=admin).status_code == 404


def test_other_projects_keep_everything(
    client: TestClient, database: Database, store: LocalBlobStore, admin: dict[str, str]
) -> None:
    fill(database, store, DEFAULT_PROJECT_ID)
    before, blobs = rows_of(database, DEFAULT_PROJECT_ID), list_blobs(store)
    add_project(database, OTHER)
    fill(database, store, OTHER)

    client.delete(f"{PROJECTS}/{OTHER}", headers=admin)

    after = rows_of(database, DEFAULT_PROJECT_ID)
    assert after.pop("audit_events") == before.pop("audit_events") + 1  # the erasure
    assert (after, list_blobs(store)) == (before, blobs)


def test_a_worker_of_an_erased_job_writes_nothing_more(
    client: TestClient, database: Database, admin: dict[str, str]
) -> None:
    add_project(database, OTHER)
    add_job(database, project_id=OTHER)
    add_job(database, project_id=OTHER)
    lease = claim(database)

    client.delete(f"{PROJECTS}/{OTHER}", headers=admin)

    with pytest.raises(LeaseLostError), database.writing() as session:
        LeaseRepository(session).finish(lease, JobStatus.SUCCEEDED, now=NOW)
    with database.writing() as session:
        assert LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None


def test_the_keys_of_an_erased_project_are_gone(
    client: TestClient, database: Database, admin: dict[str, str]
) -> None:
    key = add_key(database, "Other")
    project_id = client.get(f"{PROJECTS}/Other", headers=admin).json()["id"]

    client.delete(f"{PROJECTS}/{project_id}", headers=admin)

    with database.reading() as session:
        assert [row.project_id for row in session.scalars(select(ApiKey))] == [DEFAULT_PROJECT_ID]
    assert client.get("/v1/files", headers=bearer(key)).status_code == 401


def test_nobody_erases_the_project_of_the_own_key(
    client: TestClient, database: Database, admin: dict[str, str]
) -> None:
    answer = client.delete(f"{PROJECTS}/{DEFAULT_PROJECT_ID}", headers=admin)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "project_not_erasable")


def test_the_project_with_the_only_keys_is_not_erased(database: Database, erase: Erase) -> None:
    """Not by the command line either: without a key, the service would need none."""
    add_key(database)

    with pytest.raises(StateConflictError, match="the only API keys"):
        erase(DEFAULT_PROJECT_ID)
    add_key(database, "Other")
    erase(DEFAULT_PROJECT_ID)


def test_the_default_project_itself_outlives_its_erasure(
    client: TestClient, database: Database, store: LocalBlobStore
) -> None:
    headers = bearer(add_key(database, "Other", [Scope.ADMIN]))
    client.post(f"{PROJECTS}/{DEFAULT_PROJECT_ID}", json={"max_running_jobs": 3}, headers=headers)
    add_file(database, store)

    answer = client.delete(f"{PROJECTS}/{DEFAULT_PROJECT_ID}", headers=headers)

    assert answer.json()["blobs"] == 1
    project = client.get(f"{PROJECTS}/{DEFAULT_PROJECT_ID}", headers=headers).json()
    assert (project["max_running_jobs"], project["erasing_since"]) == (3, None)
    add_job(database)
    assert claim(database).project_id == DEFAULT_PROJECT_ID


class PowerCutError(Exception):
    pass


def test_no_job_is_started_until_an_interrupted_erasure_is_repeated(
    database: Database, erase: Erase
) -> None:
    with database.writing() as session:
        ProjectsRepository(session).get(DEFAULT_PROJECT_ID).max_running_jobs = 3

    def break_off(_: Any) -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        erase(DEFAULT_PROJECT_ID, read=break_off)
    add_job(database)

    with database.writing() as session:
        assert not Turns(session).is_any(now=NOW)
        assert LeaseRepository(session).claim("worker-1", now=NOW, lease_for=MINUTE) is None
        project = get_project(session, DEFAULT_PROJECT_ID)
    assert (project.erasing_since, project.max_running_jobs) == (int(NOW.timestamp()), 3)
    assert erase(DEFAULT_PROJECT_ID).rows["jobs"] == 1
    add_job(database)
    assert claim(database).project_id == DEFAULT_PROJECT_ID


def test_others_write_while_an_erasure_counts(
    database: Database, store: LocalBlobStore, erase: Erase
) -> None:
    add_project(database, OTHER)

    def count(act: Any) -> Any:
        add_file(database, store)
        return database.read(act)

    erase(OTHER, read=count)

    assert rows_of(database, DEFAULT_PROJECT_ID)["files"] == 1


def test_the_compiled_layers_of_an_erased_project_are_gone(
    database: Database, settings: Settings, erase: Erase
) -> None:
    add_project(database, OTHER)
    for project_id in (DEFAULT_PROJECT_ID, OTHER):
        compiled = settings.project_caches_dir / project_id / "1000" / "layers.so"
        compiled.parent.mkdir(parents=True)
        compiled.touch()

    erase(OTHER)

    assert [path.name for path in settings.project_caches_dir.iterdir()] == [DEFAULT_PROJECT_ID]
