"""One request, one job: by its key, or by what the client says of its retries."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import Hyperparameters
from tests.builders import add_file, claim, dump_tables
from tests.fakes import FrozenClock

JOBS = "/v1/fine_tuning/jobs"
THREADS = 16
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _stopped_clock(app: FastAPI, clock: FrozenClock) -> None:
    app.dependency_overrides[utc_now] = clock


@pytest.fixture
def body(database: Database, store: LocalBlobStore) -> dict[str, Any]:
    return {"model": "tiny", "training_file": add_file(database, store).id}


def send(client: TestClient, body: Any, **headers: str) -> Any:
    """`retry_count` becomes `x-stainless-retry-count`, and so on."""
    names = {
        "key": "Idempotency-Key",
        "retry_count": "x-stainless-retry-count",
        "read_timeout": "x-stainless-read-timeout",
        "authorization": "Authorization",
    }
    named = {names[name]: value for name, value in headers.items()}
    return client.post(JOBS, json=body, headers=named)


def create(client: TestClient, body: Any, **headers: str) -> str:
    """The id of the job that is the answer."""
    answer = send(client, body, **headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def count_jobs(database: Database) -> int:
    return len(dump_tables(database)["jobs"])


def test_a_request_with_neither_key_nor_retry_always_makes_a_job(
    client: TestClient, body: dict[str, Any]
) -> None:
    answers = [send(client, body), send(client, body), send(client, body, retry_count="0")]

    assert len({answer.json()["id"] for answer in answers}) == 3
    assert all("idempotent-replayed" not in answer.headers for answer in answers)


def test_the_same_key_and_body_are_one_job_for_days(
    client: TestClient, database: Database, clock: FrozenClock, body: dict[str, Any]
) -> None:
    first = send(client, body, key="k")
    before = dump_tables(database)
    clock.advance(timedelta(days=6, hours=23))

    again = send(client, body, key="k")

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert dump_tables(database) == before


def test_a_replay_shows_the_job_as_it_is_by_now(client: TestClient, body: dict[str, Any]) -> None:
    job_id = create(client, body, key="k")
    client.post(f"{JOBS}/{job_id}/cancel")
    client.delete(f"/v1/files/{body['training_file']}")

    answer = send(client, body, key="k")

    assert (answer.json()["id"], answer.json()["status"]) == (job_id, "cancelled")


@pytest.mark.parametrize(
    "rewrite",
    [
        pytest.param(
            lambda body: json.dumps(
                {"metadata": {"b": "2", "a": "1"}} | dict(reversed(body.items())), indent=4
            ),
            id="order and space",
        ),
        pytest.param(
            lambda body: json.dumps(
                body | dict.fromkeys(["suffix", "method", "auto_start", "priority", "metadata"])
            ),
            id="nulls",
        ),
        pytest.param(
            lambda body: json.dumps(body | {"auto_start": True, "priority": 0}), id="defaults"
        ),
        pytest.param(
            lambda body: json.dumps(
                body | {"hyperparameters": {"lora_rank": 8, "learning_rate": 1, "n_epochs": None}}
            ),
            id="another name of the hyperparameter",
        ),
    ],
)
@pytest.mark.parametrize("how", [{"Idempotency-Key": "k"}, {"x-stainless-retry-count": "1"}])
def test_a_request_is_the_same_however_it_is_written(
    client: TestClient,
    body: dict[str, Any],
    rewrite: Callable[[Any], str],
    how: dict[str, str],
) -> None:
    rewritten = rewrite(body)
    if '"b"' in rewritten:
        body = body | {"metadata": {"a": "1", "b": "2"}}
    if "hyperparameters" in rewritten:
        body = body | {"hyperparameters": {"learning_rate": 1.0, "lora_r": 8, "batch_size": "auto"}}
    first = client.post(JOBS, json=body, headers=how)

    headers = how | {"content-type": "application/json"}
    again = client.post(JOBS, content=rewritten, headers=headers)

    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"


def test_what_is_not_asked_for_is_no_part_of_a_request() -> None:
    """Else a version with one more field would not know the requests of the one before."""
    body = JobCreate(model="tiny", training_file="file-1", hyperparameters=Hyperparameters())

    assert body.content() == {
        "model": "tiny",
        "training_file": "file-1",
        "auto_start": True,
        "priority": 0,
        "hyperparameters": {},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"suffix": "b"},
        {"seed": 1},
        {"auto_start": False},
        {"priority": 1},
        {"metadata": {"a": "1"}},
        {"hyperparameters": {"n_epochs": 3}},
    ],
)
def test_a_key_with_another_body_is_refused(
    client: TestClient, database: Database, body: dict[str, Any], change: dict[str, Any]
) -> None:
    job_id = create(client, body, key="k")
    before = dump_tables(database)

    answer = send(client, body | change, key="k")

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
    assert job_id in error["message"]
    assert dump_tables(database) == before
    assert create(client, body | change, retry_count="1") != job_id


def test_a_request_that_was_refused_is_not_remembered(
    client: TestClient, body: dict[str, Any]
) -> None:
    refused = send(client, body | {"model": "absent"}, key="k")

    assert refused.status_code == 400
    assert "idempotent-replayed" not in send(client, body, key="k").headers


def test_a_key_belongs_to_the_project_and_not_to_a_caller(
    client: TestClient, body: dict[str, Any]
) -> None:
    job_id = create(client, body, key="k", authorization="Bearer a")

    assert create(client, body, key="k", authorization="Bearer b") == job_id
    assert create(client, body, key="K", authorization="Bearer a") != job_id


def test_a_key_that_the_deleted_job_had_makes_a_new_one(
    client: TestClient, body: dict[str, Any]
) -> None:
    job_id = create(client, body, key="k")
    client.post(f"{JOBS}/{job_id}/cancel")
    client.delete(f"{JOBS}/{job_id}")

    assert create(client, body, key="k") != job_id


@pytest.mark.parametrize(
    ("retry_count", "read_timeout", "window_s"),
    [
        ("1", "600", 660),
        ("2", "600", 1260),
        ("1", "5.0", 65),
        ("1", "0.5", 60),
        ("1", "3600", 3660),
        ("1", "86400", 3660),
        ("1", "1e300", 3660),
        ("9999", "3600", 7 * 24 * 3600),
        *(("1", nonsense, 660) for nonsense in ("", "nan", "inf", "0", "-5", "None", "5, 5")),
    ],
)
def test_a_retry_of_the_client_itself_finds_its_job_while_it_may_still_come(
    client: TestClient,
    clock: FrozenClock,
    body: dict[str, Any],
    *,
    retry_count: str,
    read_timeout: str,
    window_s: int,
) -> None:
    retry = {"retry_count": retry_count, "read_timeout": read_timeout}
    job_id = create(client, body, retry_count="0")

    clock.advance(window_s * SECOND)
    assert create(client, body, **retry) == job_id

    clock.advance(SECOND)
    answer = send(client, body, **retry)
    assert answer.json()["id"] != job_id
    assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("nonsense", ["", "x", "-1", "1.0", "1, 2", "0x1", "10000", "9" * 5000])
def test_a_retry_count_that_is_none_is_ignored(
    client: TestClient, body: dict[str, Any], nonsense: str
) -> None:
    job_id = create(client, body)

    assert create(client, body, retry_count=nonsense) != job_id


def test_a_retry_finds_the_newest_of_equal_jobs(
    client: TestClient, clock: FrozenClock, body: dict[str, Any]
) -> None:
    create(client, body)
    clock.advance(SECOND)
    newest = create(client, body)
    clock.advance(SECOND)
    create(client, body | {"seed": 1})

    assert create(client, body, retry_count="1") == newest


def test_a_retry_is_that_of_the_same_caller(client: TestClient, body: dict[str, Any]) -> None:
    job_id = create(client, body, authorization="Bearer a")

    assert create(client, body, authorization="Bearer b", retry_count="1") != job_id
    assert create(client, body, authorization="Bearer a", retry_count="1") == job_id


def test_a_key_decides_alone(client: TestClient, body: dict[str, Any]) -> None:
    plain = create(client, body)
    keyed = create(client, body, key="k", retry_count="1")

    assert keyed != plain
    assert create(client, body, retry_count="1") == plain


@pytest.mark.parametrize(("by_retry", "is_same"), [("1", True), ("0", False)])
def test_a_first_try_that_waited_longer_than_its_client_finds_what_the_retry_has_made(
    client: TestClient, clock: FrozenClock, body: dict[str, Any], by_retry: str, *, is_same: bool
) -> None:
    """SQLite lets those who wait for its lock have it in any order."""
    came_first = clock.now
    clock.advance(5 * SECOND)
    served_first = create(client, body, retry_count=by_retry)
    clock.now = came_first

    assert (create(client, body, retry_count="0") == served_first) is is_same


def test_a_new_job_that_comes_after_a_retry_is_a_new_job(
    client: TestClient, clock: FrozenClock, body: dict[str, Any]
) -> None:
    made_by_retry = create(client, body, retry_count="1")
    clock.advance(SECOND)

    assert create(client, body, retry_count="0") != made_by_retry


def test_a_rerun_is_one_job_by_the_same_rules(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    original, other = create(client, body, key="k"), create(client, body)

    def rerun(job_id: str, **headers: str) -> Any:
        return client.post(f"{JOBS}/{job_id}/rerun", headers=headers)

    keyed = rerun(original, **{"Idempotency-Key": "k"})
    again = rerun(original, **{"Idempotency-Key": "k"})
    of_other = rerun(other, **{"Idempotency-Key": "k"})
    plain = rerun(original)
    retried = rerun(original, **{"x-stainless-retry-count": "1"})

    assert keyed.json()["rerun_of"] == original
    assert again.json()["id"] == keyed.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert of_other.json()["error"]["code"] == "idempotency_key_reused"
    assert retried.json()["id"] == plain.json()["id"] != keyed.json()["id"]
    assert count_jobs(database) == 4


def test_a_running_job_is_found_as_well(
    client: TestClient, database: Database, body: dict[str, Any]
) -> None:
    job_id = create(client, body)
    claim(database)

    assert create(client, body, retry_count="1") == job_id
    with database.reading() as session:
        assert JobRepository(session, DEFAULT_PROJECT_ID).get(job_id).status is JobStatus.RUNNING


@pytest.mark.parametrize("how", ["key", "retry_count"])
def test_what_many_send_at_once_is_one_job_per_request(
    client: TestClient, database: Database, body: dict[str, Any], how: str
) -> None:
    """Sixteen clients send each of ten requests sixteen times, all mixed up."""
    requests = [body | {"seed": seed} for seed in range(10)]
    sendings = [(request, try_) for try_ in range(THREADS) for request in requests]

    def send_one(sending: tuple[dict[str, Any], int]) -> tuple[int, str]:
        request, try_ = sending
        headers = {how: f"{request['seed']}" if how == "key" else f"{try_}"}
        return request["seed"], create(client, request, **headers)

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(send_one, sendings))

    assert len(answers) == 160
    assert len(set(answers)) == count_jobs(database) == 10
