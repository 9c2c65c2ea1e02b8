"""What comes while another transaction is about to make it wrong waits for that one's end."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.access import LOCAL_CALLER
from app.core.base_models import Catalogue
from app.core.clock import utc_now
from app.core.db.repositories.files import ExpiredFiles
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.storage.local import LocalBlobStore
from app.schemas.fine_tuning_jobs import JobCreate
from app.services import files as file_service
from app.services import jobs as job_service
from app.services import new_jobs
from app.services.idempotency import IdempotentRequest, RequestOrigin
from tests.builders import add_file, add_succeeded_job, dump_tables, list_blobs

JOBS = "/v1/fine_tuning/jobs"
MEANWHILE_S = 0.5
"""In which somebody who does not wait, and should, would have been served."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def training_file(client: TestClient, database: Database, store: LocalBlobStore) -> str:
    """There is a file; and the service is up, so that nothing but the database is waited for."""
    assert client.get("/readyz").status_code == 200
    return add_file(database, store).id


def meet(
    database: Database,
    threads: ThreadPoolExecutor,
    *,
    first: Callable[[Session], object],
    second: Callable[[], Any],
) -> Any:
    """The answer to who comes second, while the transaction of the first is still open."""
    with database.writing() as session:
        first(session)
        coming = threads.submit(second)
        wait([coming], timeout=MEANWHILE_S)
    return coming.result(60)


def make_job(
    session: Session, catalogue: Catalogue, training_file: str, *, now: datetime | None = None
) -> Job:
    return new_jobs.create_job(
        session,
        LOCAL_CALLER,
        JobCreate(model="tiny", training_file=training_file),
        catalogue=catalogue,
        organization="tunery",
        now=now or utc_now(),
    )


def test_a_file_is_not_deleted_while_a_job_is_made_of_it(
    client: TestClient,
    database: Database,
    catalogue: Catalogue,
    *,
    threads: ThreadPoolExecutor,
    training_file: str,
) -> None:
    answer = meet(
        database,
        threads,
        first=lambda session: make_job(session, catalogue, training_file),
        second=lambda: client.delete(f"/v1/files/{training_file}"),
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "file_in_use")


def test_no_job_is_made_of_a_file_while_it_is_deleted(
    client: TestClient, database: Database, threads: ThreadPoolExecutor, training_file: str
) -> None:
    body = {"model": "tiny", "training_file": training_file}

    answer = meet(
        database,
        threads,
        first=lambda session: file_service.delete_file(
            session, LOCAL_CALLER, training_file, now=utc_now()
        ),
        second=lambda: client.post(JOBS, json=body),
    )

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert dump_tables(database)["jobs"] == []


def test_a_file_does_not_expire_while_a_job_is_made_of_it(
    database: Database, store: LocalBlobStore, catalogue: Catalogue, threads: ThreadPoolExecutor
) -> None:
    expires_at = utc_now()
    file = add_file(database, store, expires_at=expires_at)

    def take_expired() -> list[str]:
        with database.writing() as session:
            found = ExpiredFiles(session).list_all(now=expires_at, limit=10)
            return [file.id for file in found]

    just_before = expires_at - timedelta(milliseconds=1)
    expired = meet(
        database,
        threads,
        first=lambda session: make_job(session, catalogue, file.id, now=just_before),
        second=take_expired,
    )

    assert expired == []


@pytest.mark.parametrize("how", ["key", "retry"])
def test_a_request_waits_for_its_like_and_makes_no_second_job(
    client: TestClient,
    database: Database,
    catalogue: Catalogue,
    *,
    threads: ThreadPoolExecutor,
    training_file: str,
    how: str,
) -> None:
    body = JobCreate(model="tiny", training_file=training_file)
    names = {"key": "Idempotency-Key", "retry": "x-stainless-retry-count"}
    no_credentials = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    key = "1" if how == "key" else None
    origin = RequestOrigin(key, no_credentials, retry_count=0, timeout=timedelta(minutes=10))

    def make_job_once(session: Session) -> None:
        once = IdempotentRequest(
            session, LOCAL_CALLER, origin, "create", body.content(), now=utc_now()
        )
        assert once.find_job() is None
        once.remember(make_job(session, catalogue, training_file))

    answer = meet(
        database,
        threads,
        first=make_job_once,
        second=lambda: client.post(JOBS, json=body.content(), headers={names[how]: "1"}),
    )

    assert answer.headers["idempotent-replayed"] == "true"
    assert len(dump_tables(database)["jobs"]) == 1


@pytest.mark.parametrize("what", ["job", "model", "file"])
def test_what_is_deleted_twice_at_once_is_gone_and_nothing_else_is_wrong(
    client: TestClient,
    database: Database,
    store: LocalBlobStore,
    *,
    threads: ThreadPoolExecutor,
    what: str,
) -> None:
    job = add_succeeded_job(database, store, steps=(1, 2))
    urls = {
        "job": f"{JOBS}/{job.id}",
        "model": f"/v1/models/{job.fine_tuned_model}",
        "file": f"/v1/files/{job.result_file_id}",
    }
    blob_keys: list[str] = []

    answer = meet(
        database,
        threads,
        first=lambda session: blob_keys.extend(
            job_service.delete_job(session, LOCAL_CALLER, job.id, now=utc_now())
        ),
        second=lambda: client.delete(urls[what]),
    )

    assert answer.status_code == 404
    assert sorted(blob_keys) == list_blobs(store)
    tables = dump_tables(database)
    kept = {"audit_events", "installation", "project_usage", "projects"}
    assert {name for name, rows in tables.items() if rows} <= kept
