"""What a project may not do any more, how it is told so, and that nobody slips through."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import openai
import pytest
from httpx import Response
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.clock import utc_now
from app.core.db.base import Project
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Database
from app.core.errors import QuotaExceededError
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from app.services.quotas import require_job
from tests.builders import TEXT_LINE, add_file, build_job, claim

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def training_file(database: Database, store: LocalBlobStore) -> str:
    return add_file(database, store).id


def limit(database: Database, **limits: Any) -> None:
    with database.writing() as session:
        project = session.get(Project, DEFAULT_PROJECT_ID)
        assert project is not None
        for name, value in limits.items():
            setattr(project, name, value)


def create_job(client: TestClient, training_file: str, **more: Any) -> Response:
    return client.post(JOBS, json={"model": "tiny", "training_file": training_file} | more)


def upload(client: TestClient, content: bytes = TEXT_LINE) -> Response:
    files = {"file": ("train.jsonl", content)}
    return client.post("/v1/files", data={"purpose": "fine-tune"}, files=files)


def is_refused(answer: Response) -> bool:
    """Whether it says so in a way that the official client does not repeat in vain."""
    error = answer.json().get("error", {})
    should_retry = answer.headers.get("x-should-retry")
    return (answer.status_code, error.get("code"), should_retry) == (
        429,
        "insufficient_quota",
        "false",
    )


def test_as_many_jobs_wait_as_may_wait(
    client: TestClient, database: Database, training_file: str
) -> None:
    limit(database, max_queued_jobs=2)

    answers = [create_job(client, training_file, auto_start=start) for start in (True, False)]
    refused = create_job(client, training_file)
    claim(database)
    later = create_job(client, training_file)

    assert [answer.status_code for answer in [*answers, later]] == [200, 200, 200]
    assert is_refused(refused)
    assert (
        "2 jobs that are validating_files, queued or paused" in refused.json()["error"]["message"]
    )


def test_a_rerun_is_a_new_job_too(
    client: TestClient, database: Database, training_file: str
) -> None:
    job = create_job(client, training_file).json()
    limit(database, max_queued_jobs=1)

    assert is_refused(client.post(f"{JOBS}/{job['id']}/rerun", json={}))


def test_a_repeated_request_is_answered_with_its_job_even_at_the_limit(
    client: TestClient, database: Database, training_file: str
) -> None:
    limit(database, max_queued_jobs=1)
    headers = {"idempotency-key": "k"}
    body = {"model": "tiny", "training_file": training_file}

    first, again = (client.post(JOBS, json=body, headers=headers) for _ in range(2))

    assert again.json()["id"] == first.json()["id"]


def test_used_up_processor_hours_stop_new_jobs(
    client: TestClient, database: Database, training_file: str
) -> None:
    limit(database, max_processor_hours=1.0)
    assert create_job(client, training_file).status_code == 200
    with database.writing() as session:
        UsageRepository(session, DEFAULT_PROJECT_ID).add(processor_s=3600, now=utc_now())

    assert is_refused(create_job(client, training_file))


def test_stored_bytes_stop_uploads_and_jobs(
    client: TestClient, database: Database, training_file: str
) -> None:
    limit(database, max_stored_bytes=2 * len(TEXT_LINE))

    assert upload(client).status_code == 200
    assert is_refused(upload(client))
    assert is_refused(create_job(client, training_file))
    assert client.delete(f"/v1/files/{training_file}").status_code == 200
    assert upload(client).status_code == 200


def test_parts_of_uploads_are_stored_bytes(client: TestClient, database: Database) -> None:
    size = 2 * len(TEXT_LINE)
    body = {"purpose": "fine-tune", "filename": "a.jsonl", "bytes": size, "mime_type": "text/jsonl"}
    upload_id = client.post("/v1/uploads", json=body).json()["id"]
    parts = f"/v1/uploads/{upload_id}/parts"
    limit(database, max_stored_bytes=len(TEXT_LINE))

    assert is_refused(client.post("/v1/uploads", json=body))
    part = client.post(parts, files={"data": ("data", TEXT_LINE)})
    assert part.status_code == 200
    assert is_refused(client.post(parts, files={"data": ("data", b'{"text": "More."}\n')}))
    twice = {"part_ids": [part.json()["id"]] * 2}
    assert is_refused(client.post(f"/v1/uploads/{upload_id}/complete", json=twice))
    once = client.get(f"/v1/uploads/{upload_id}").json()
    assert once["status"] == "pending"


def test_the_stock_client_is_told_and_does_not_repeat_the_request(
    strict: openai.OpenAI, database: Database, training_file: str
) -> None:
    limit(database, max_queued_jobs=0)
    patient = strict.with_options(max_retries=2)

    with pytest.raises(openai.RateLimitError) as caught:
        patient.fine_tuning.jobs.create(model="tiny", training_file=training_file)

    assert caught.value.code == "insufficient_quota"
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


def test_requests_at_the_same_moment_do_not_pass_a_limit_together(database: Database) -> None:
    limit(database, max_queued_jobs=3)
    start = Barrier(8)

    def create() -> bool:
        start.wait(60)
        try:
            with database.writing() as session:
                require_job(session, LOCAL_CALLER, now=utc_now())
                session.add(build_job())
        except QuotaExceededError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        created = [each.result() for each in [threads.submit(create) for _ in range(8)]]

    assert created.count(True) == 3
    with database.reading() as session:
        usage = UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=utc_now())
    assert usage.jobs == {JobStatus.QUEUED: 3}
