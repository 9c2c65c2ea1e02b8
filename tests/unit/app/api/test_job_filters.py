"""The list of jobs, filtered by status, text and base model."""

from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.db.tables import Job, JobMetadata
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.main import create_app
from tests.builders import add_job, add_key, add_project, bearer, build_job_in

JOBS = "/v1/fine_tuning/jobs"


def list_ids(client: TestClient, **params: Any) -> list[str]:
    answer = client.get(JOBS, params=params)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def label(key: str, value: str) -> list[JobMetadata]:
    return [JobMetadata(key=key, value=value)]


@pytest.fixture
def by_status(database: Database) -> dict[str, Job]:
    """A job in every status, the oldest first."""
    return {status: add_job(database, **build_job_in(status)) for status in JobStatus}


def test_jobs_are_filtered_by_one_or_more_statuses(
    client: TestClient, by_status: dict[str, Job]
) -> None:
    for status, job in by_status.items():
        assert list_ids(client, status=status) == [job.id]
    some = [by_status[status].id for status in ("failed", "running", "queued")]
    assert list_ids(client, status="running, queued,failed") == some
    assert len(list_ids(client, status="")) == len(JobStatus)


def test_an_unknown_status_is_refused_with_those_that_there_are(client: TestClient) -> None:
    answer = client.get(JOBS, params={"status": "queued,runing"})

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "status"
    assert error["message"] == (
        "No job has the status 'runing'. Choose from: validating_files, queued, running, paused, "
        "succeeded, failed, cancelled."
    )


def test_a_filter_goes_by_the_status_that_is_shown(
    settings: Settings, by_status: dict[str, Job]
) -> None:
    app = create_app(settings.model_copy(update={"show_paused_as": "queued"}))

    with TestClient(app, base_url="http://127.0.0.1") as client:
        shown = list_ids(client, status="queued")
        refused = client.get(JOBS, params={"status": "paused"})

    assert shown == [by_status["paused"].id, by_status["queued"].id]
    assert refused.status_code == 400


def test_a_text_is_found_in_ids_names_suffixes_and_labels(
    client: TestClient, database: Database
) -> None:
    named = add_job(database, fine_tuned_model="ft:tiny:tunery:my-poems:abc", suffix="My Poems")
    labelled = add_job(database, metadata_items=label("team", "Red pandas"))
    other = add_job(database, base_model="large", fine_tuned_model="ft:large:tunery::other")

    assert list_ids(client, search="POEMS") == [named.id]
    assert list_ids(client, search="my poem") == [named.id]
    assert list_ids(client, search="red PANDA") == [labelled.id]
    assert list_ids(client, search="eam") == [labelled.id]
    assert list_ids(client, search="large") == [other.id]
    assert list_ids(client, search=labelled.id[-8:].upper()) == [labelled.id]
    assert list_ids(client, search="nothing like it") == []
    assert len(list_ids(client, search="")) == 3


@pytest.mark.parametrize("text", ["%", "_", "100%_", "/", "\\", "'", '"; DROP TABLE jobs; --', "é"])
def test_every_character_of_a_text_stands_for_itself(
    client: TestClient, database: Database, text: str
) -> None:
    add_job(database, suffix="plain")
    found = add_job(database, metadata_items=label("note", f"a{text}b"))

    assert list_ids(client, search=text) == [found.id]
    assert list_ids(client, search=f"A{text}B") == [found.id]
    assert list_ids(client, search=f"b{text}a") == []


def test_a_text_of_more_than_100_characters_is_refused(client: TestClient) -> None:
    answer = client.get(JOBS, params={"search": "a" * 101})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "search")


def test_filters_are_combined_and_paged_by_the_stock_client(
    strict: openai.OpenAI, database: Database
) -> None:
    wanted = [
        add_job(database, suffix="poems", base_model="large", metadata_items=label("team", "red"))
        for _ in range(3)
    ]
    add_job(database, suffix="poems", base_model="large")
    add_job(database, suffix="poems", metadata_items=label("team", "red"))
    add_job(database, base_model="large", metadata_items=label("team", "red"))
    ended = build_job_in(JobStatus.CANCELLED)
    add_job(database, suffix="poems", base_model="large", **ended)
    filters = {"status": "queued", "base_model": "large", "search": "poem"}

    def ids(order: str) -> list[str]:
        query = filters | {"order": order}
        jobs = strict.fine_tuning.jobs.list(limit=2, metadata={"team": "red"}, extra_query=query)
        return [job.id for job in jobs]

    assert ids("asc") == [job.id for job in wanted]
    assert ids("desc") == [job.id for job in reversed(wanted)]


def test_an_unknown_order_is_refused(client: TestClient) -> None:
    answer = client.get(JOBS, params={"order": "newest"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "order")


def test_no_filter_finds_a_job_of_another_project(client: TestClient, database: Database) -> None:
    add_project(database, "proj-other")
    other = add_job(
        database, project_id="proj-other", suffix="secret", metadata_items=label("k", "secret")
    )
    own = bearer(add_key(database))

    for params in ({"search": "secret"}, {"search": other.id}, {"status": "queued"}, {}):
        answer = client.get(JOBS, params=params, headers=own)
        assert (answer.status_code, answer.json()["data"]) == (200, [])
    with database.reading() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        assert jobs.list_page(after=None, limit=9).rows == []
