"""The loss log of a job over HTTP: pages of JSON, whole CSV and JSON lines, and thinned points."""

import csv
import io
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.loss_log import StepMetrics
from tests.builders import add_job, build_base_metrics, build_metrics, claim

STEPS = 2500


@pytest.fixture
def job(database: Database) -> Job:
    """A job that has taken 2,500 steps."""
    return add_job_with(database, [build_metrics(step) for step in range(1, STEPS + 1)])


@pytest.fixture
def evaluated_job(database: Database) -> Job:
    """A job whose base model was evaluated before its four steps."""
    return add_job_with(database, [build_base_metrics(), *map(build_metrics, range(1, 5))])


def add_job_with(database: Database, rows: list[StepMetrics]) -> Job:
    job = add_job(database)
    lease = claim(database)
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )
    return job


def get(client: TestClient, job: Job, accept: str = "application/json", **params: Any) -> Any:
    url = f"/v1/fine_tuning/jobs/{job.id}/metrics"
    answer = client.get(url, params=params, headers={"accept": accept})
    assert answer.status_code == 200, answer.text
    return answer.json() if accept == "application/json" else answer.text


def steps_of(page: dict[str, Any]) -> list[int]:
    return [row["step"] for row in page["data"]]


def test_json_comes_in_pages_that_follow_one_another(client: TestClient, job: Job) -> None:
    pages: list[dict[str, Any]] = [get(client, job)]
    while pages[-1]["has_more"]:
        pages.append(get(client, job, step_from=steps_of(pages[-1])[-1] + 1))

    assert [len(page["data"]) for page in pages] == [1000, 1000, 500]
    assert [step for page in pages for step in steps_of(page)] == list(range(1, STEPS + 1))


def test_a_page_is_as_long_as_was_asked_for(client: TestClient, job: Job) -> None:
    short = get(client, job, limit=3, step_from=10)
    exact = get(client, job, limit=3, step_from=10, step_to=12)
    whole = get(client, job, limit=10_000)

    assert (steps_of(short), short["has_more"]) == ([10, 11, 12], True)
    assert (steps_of(exact), exact["has_more"]) == ([10, 11, 12], False)
    assert (len(whole["data"]), whole["has_more"]) == (STEPS, False)


def test_the_base_model_is_step_0_of_every_form(client: TestClient, evaluated_job: Job) -> None:
    page = get(client, evaluated_job, limit=2)
    points = get(client, evaluated_job, points=4)
    table = csv.DictReader(io.StringIO(get(client, evaluated_job, "text/csv")))
    shown = client.get(f"/v1/fine_tuning/jobs/{evaluated_job.id}").json()

    assert (steps_of(page), page["has_more"]) == ([0, 1], True)
    assert steps_of(get(client, evaluated_job, step_from=1)) == [1, 2, 3, 4]
    assert steps_of(points) == [0, 1, 3, 4]
    assert [row["step"] for row in table] == ["0", "1", "2", "3", "4"]
    assert (shown["trained_steps"], shown["valid_loss"]) == (4, 4.0)


def test_csv_and_json_lines_have_every_step(client: TestClient, job: Job) -> None:
    as_csv = csv.DictReader(io.StringIO(get(client, job, "text/csv", limit=3)))
    as_lines = get(client, job, "application/x-ndjson", limit=3).splitlines()
    part = csv.DictReader(io.StringIO(get(client, job, "text/csv", step_from=5, step_to=7)))

    assert [int(row["step"]) for row in as_csv] == list(range(1, STEPS + 1))
    assert [json.loads(line)["step"] for line in as_lines] == list(range(1, STEPS + 1))
    assert [int(row["step"]) for row in part] == [5, 6, 7]


def test_points_are_the_ends_and_extremes_and_only_on_request(client: TestClient, job: Job) -> None:
    page = get(client, job, points=5)
    part = get(client, job, points=4, step_from=10, step_to=30)
    few = get(client, job, points=1000, step_from=2499)
    lines = get(client, job, "application/x-ndjson", points=2).splitlines()

    assert (steps_of(page), page["has_more"]) == ([1, 2, 2499, 2500], False)
    assert steps_of(part) == [10, 11, 29, 30]
    assert steps_of(few) == [2499, 2500]
    assert [json.loads(line)["step"] for line in lines] == [1, 2500]


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 10_001}, {"points": 1}, {"points": 1001}], ids=str
)
def test_a_page_cannot_be_of_any_size(client: TestClient, job: Job, params: dict[str, int]) -> None:
    answer = client.get(f"/v1/fine_tuning/jobs/{job.id}/metrics", params=params)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in params


@pytest.mark.parametrize(
    "accept", ["application/json", "text/csv", "application/x-ndjson", "application/x-tensorboard"]
)
def test_the_log_of_an_unknown_job_is_not_found(client: TestClient, accept: str) -> None:
    answer = client.get("/v1/fine_tuning/jobs/ftjob-nope/metrics", headers={"accept": accept})

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
