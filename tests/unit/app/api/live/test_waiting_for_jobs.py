"""`GET /v1/fine_tuning/jobs/{id}?wait=SECONDS`: an answer as soon as something has changed."""

import threading
import time
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.api.leaving import end_answer, end_with_service
from app.api.polls.entity_tags import entity_tag
from app.core.access import DEFAULT_PROJECT_ID
from app.core.access.api_keys import read_key_id
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.session import Database
from tests.builders import NOW, add_job, add_key, bearer, claim
from tests.streams import PATIENCE_S, serving, serving_until
from tests.waiting import wait_until


class Waiting:
    """A request that waits, in a thread of its own."""

    def __init__(
        self, app: FastAPI, client: httpx.Client, path: str, headers: dict[str, str] | None = None
    ) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=self._ask, args=(client, path, headers))
        before = app.state.hub.count_streams()
        self._thread.start()
        wait_until(lambda: app.state.hub.count_streams() > before, within_s=PATIENCE_S)

    def _ask(self, client: httpx.Client, path: str, headers: dict[str, str] | None) -> None:
        self._answers.append(client.get(path, params={"wait": 60}, headers=headers))

    def answer(self) -> httpx.Response:
        self._thread.join(PATIENCE_S)
        return self._answers[0]


def test_the_answer_comes_when_the_job_has_changed(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with serving(app) as client:
        waiting = Waiting(app, client, f"/jobs/{job.id}")
        claim(database)
        answer = waiting.answer()
        shown = client.get(f"/jobs/{job.id}").json()

    assert answer.json() == shown
    assert shown["status"] == "running"
    assert app.state.hub.count_streams() == 0


@pytest.mark.only_sqlite
def test_a_job_that_is_not_as_the_client_knows_it_is_sent_at_once(
    app: FastAPI, database: Database
) -> None:
    job = add_job(database)
    with serving(app) as client:
        known = entity_tag(client.get(f"/jobs/{job.id}").content)
        waiting = Waiting(app, client, f"/jobs/{job.id}", {"if-none-match": known})
        claim(database)
        assert waiting.answer().json()["status"] == "running"

        began_s = time.monotonic()
        changed = client.get(
            f"/jobs/{job.id}", params={"wait": 60}, headers={"if-none-match": known}
        )

    assert changed.json()["status"] == "running"
    assert time.monotonic() - began_s < 10


@pytest.mark.only_sqlite
def test_a_job_that_does_not_change_is_sent_in_the_end(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with serving(app) as client:
        began_s = time.monotonic()
        answers = [client.get(f"/jobs/{job.id}", params={"wait": 1}) for _ in range(2)]

    took_s = time.monotonic() - began_s
    assert [answer.json()["status"] for answer in answers] == ["queued"] * 2
    assert took_s >= 2
    labels = {"route": "/v1/fine_tuning/jobs/{job_id}", "method": "GET", "status": "2xx"}
    registry = app.state.metrics.registry
    name = "tunery_http_request_duration_seconds_sum"
    assert 0 < registry.get_sample_value(name, labels) < took_s - 1.5
    assert registry.get_sample_value("tunery_streams_open") == 0


@pytest.mark.only_sqlite
@pytest.mark.parametrize("seconds", ["0", "61", "1.5", "x"])
def test_the_time_has_limits(app: FastAPI, database: Database, seconds: str) -> None:
    job = add_job(database)
    with serving(app) as client:
        answer = client.get(f"/jobs/{job.id}", params={"wait": seconds})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait")


@pytest.mark.only_sqlite
def test_a_job_that_is_deleted_meanwhile_is_not_found(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with serving(app) as client:
        waiting = Waiting(app, client, f"/jobs/{job.id}")
        with database.writing() as session:
            jobs = JobRepository(session, DEFAULT_PROJECT_ID)
            jobs.delete(jobs.get(job.id))
        answer = waiting.answer()

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.only_sqlite
def test_a_key_that_is_revoked_meanwhile_gets_no_answer(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    key = add_key(database)
    with serving(app) as client:
        waiting = Waiting(app, client, f"/jobs/{job.id}", bearer(key))
        with database.writing() as session:
            KeyRepository(session).revoke(read_key_id(key) or "", now=NOW)
        answer = waiting.answer()

    assert answer.status_code == HTTPStatus.UNAUTHORIZED


@pytest.mark.only_sqlite
def test_a_service_that_stops_answers_with_the_job_as_it_is(
    app: FastAPI, database: Database
) -> None:
    job = add_job(database)
    with serving_until(app) as (client, server):
        waiting = Waiting(app, client, f"/jobs/{job.id}")
        server.should_exit = True
        answer = waiting.answer()

    assert answer.json()["status"] == "queued"


def test_an_answer_that_begins_to_wait_after_the_service_stopped_ends_at_once() -> None:
    ended: list[str] = []
    early: dict[str, Any] = {}
    late: dict[str, Any] = {}

    end_with_service(early, lambda: ended.append("early"))
    assert not ended
    end_answer(early)
    end_answer(late)
    end_with_service(late, lambda: ended.append("late"))

    assert ended == ["early", "late"]
