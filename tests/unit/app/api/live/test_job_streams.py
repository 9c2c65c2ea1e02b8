"""The stream of a job over HTTP."""

import threading
import time
from http import HTTPStatus
from itertools import islice

import httpx
import pytest
from fastapi import FastAPI

from app.api.live import hub as hub_module
from app.api.live.jobs import FollowedJob, JobState
from app.api.live.topic import Update
from app.core.access import DEFAULT_PROJECT_ID
from app.core.access.api_keys import read_key_id
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_job,
    add_key,
    add_succeeded_job,
    bearer,
    build_metrics,
    claim,
)
from tests.streams import Message, read_to_end, serving, serving_until, streaming
from tests.waiting import wait_until

STREAM = {"stream": "true"}


def record_step(database: Database, lease: Lease, step: int) -> None:
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease,
            [build_metrics(step)],
            tokens_per_second=None,
            estimated_finish_at=None,
        )


def test_a_job_that_has_ended_is_replayed_and_the_stream_ends(
    app: FastAPI, database: Database, store: LocalBlobStore
) -> None:
    done = add_succeeded_job(database, store, steps=(3,))
    with serving(app) as client:
        messages = read_to_end(client, f"/jobs/{done.id}/events", params=STREAM)
        shown = client.get(f"/jobs/{done.id}").json()
        events = client.get(f"/jobs/{done.id}/events").json()["data"]
        steps = client.get(f"/jobs/{done.id}/metrics").json()["data"]

    kinds = [message.kind for message in messages]
    assert kinds == ["job", *["event"] * len(events), *["step"] * 3, "end"]
    by_kind = {kind: [one.data for one in messages if one.kind == kind] for kind in kinds}
    assert by_kind["job"] == by_kind["end"] == [shown]
    assert by_kind["event"] == list(reversed(events))
    assert by_kind["step"] == steps


def test_the_header_of_a_new_connection_wins_over_the_cursor(
    app: FastAPI, database: Database, store: LocalBlobStore
) -> None:
    done = add_succeeded_job(database, store, steps=(3,))
    path = f"/jobs/{done.id}/events"
    with serving(app) as client:
        everything = read_to_end(client, path, params=STREAM)
        from_cursor = read_to_end(client, path, params=STREAM | {"cursor": everything[2].id})
        from_header = read_to_end(
            client,
            path,
            params=STREAM | {"cursor": everything[2].id},
            headers={"last-event-id": everything[-3].id},
        )
        latest = read_to_end(client, path, params=STREAM | {"cursor": "latest"})

    assert from_cursor[1:] == everything[3:]
    assert from_header[1:] == everything[-2:]
    assert [message.kind for message in latest] == ["job", "end"]
    assert latest[0].id == everything[-1].id


def test_what_happens_arrives_as_it_happens(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    path = f"/jobs/{job.id}/events"
    with (
        serving(app) as client,
        streaming(client, path, params=STREAM | {"cursor": "latest"}) as messages,
    ):
        first = next(messages)
        lease = claim(database)
        claimed = next(messages)
        record_step(database, lease, 1)
        told = [next(messages) for _ in range(2)]
        with database.writing() as session:
            LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=NOW)
        last = list(messages)

    assert (first.kind, first.data["status"]) == ("job", "queued")
    assert (claimed.kind, claimed.data["status"]) == ("job", "running")
    assert [(one.kind, one.data.get("step")) for one in told] == [("job", None), ("step", 1)]
    assert [message.kind for message in last] == ["job", "event", "end"]
    assert last[-1].data["status"] == "cancelled"


def test_the_answer_is_not_stored_or_held_back_on_its_way(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with (
        serving(app) as client,
        client.stream("GET", f"/jobs/{job.id}/events", params=STREAM) as answer,
    ):
        lines = answer.iter_lines()
        first = next(lines)

    assert first == "retry: 2000"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_job_that_is_deleted_ends_its_streams(
    app: FastAPI, database: Database, store: LocalBlobStore
) -> None:
    job = add_job(database)
    with (
        serving(app) as client,
        streaming(client, f"/jobs/{job.id}/events", params=STREAM) as messages,
    ):
        assert next(messages).kind == "job"
        with database.writing() as session:
            jobs = JobRepository(session, DEFAULT_PROJECT_ID)
            jobs.delete(jobs.get(job.id))
        last = list(messages)[-1]

    assert last.kind == "end"
    assert (last.data["id"], last.data["deleted"]) == (job.id, True)


@pytest.mark.only_sqlite
def test_a_job_of_another_project_does_not_exist(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    other = bearer(add_key(database, "Other"))
    with serving(app) as client:
        answers = [
            client.get(f"/jobs/{job.id}/events", params=STREAM, headers=other),
            client.get(f"/jobs/{job.id}", params={"wait": 1}, headers=other),
        ]
        hub = app.state.hub

        assert [answer.status_code for answer in answers] == [HTTPStatus.NOT_FOUND] * 2
        assert {answer.json()["error"]["code"] for answer in answers} == {"job_not_found"}
        assert hub.count_streams() == 0


@pytest.mark.only_sqlite
def test_a_cursor_that_is_none_is_refused(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with serving(app) as client:
        answer = client.get(f"/jobs/{job.id}/events", params=STREAM | {"cursor": "ftevent-1"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")


@pytest.mark.only_sqlite
def test_a_revoked_key_loses_its_streams(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    key, other_key = add_key(database), add_key(database)
    path = f"/jobs/{job.id}/events"
    with (
        serving(app) as client,
        streaming(client, path, params=STREAM, headers=bearer(key)) as messages,
        streaming(client, path, params=STREAM, headers=bearer(other_key)) as others,
    ):
        assert next(messages).kind == next(others).kind == "job"
        with database.writing() as session:
            KeyRepository(session).revoke(read_key_id(key) or "", now=NOW)

        rest = list(messages)

        assert "end" not in [message.kind for message in rest]
        assert client.get(f"/jobs/{job.id}", headers=bearer(key)).status_code == 401
        claim(database)
        assert next(one for one in others if one.kind == "job").data["status"] == "running"


@pytest.mark.only_sqlite
def test_streams_do_not_hold_up_the_end_of_the_service(app: FastAPI, database: Database) -> None:
    job = add_job(database)
    with serving_until(app) as (client, server):
        with (
            streaming(client, f"/jobs/{job.id}/events", params=STREAM) as messages,
            streaming(client, "/jobs", params=STREAM) as jobs,
        ):
            assert next(messages).kind == "job"
            began_s = time.monotonic()
            server.should_exit = True
            rest, other_rest = list(messages), list(jobs)

        assert time.monotonic() - began_s < 5
        assert "end" not in [message.kind for message in rest]
        assert other_rest == []


def test_the_database_is_asked_once_for_all_readers(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job(database)
    looks: list[JobState | None] = []
    look = FollowedJob.look

    def count(followed: FollowedJob, before: JobState | None) -> Update[JobState]:
        looks.append(before)
        return look(followed, before)

    monkeypatch.setattr(FollowedJob, "look", count)
    received: list[list[Message]] = [[] for _ in range(200)]
    path, params = f"/jobs/{job.id}/events", STREAM | {"cursor": "latest"}

    def read(number: int, client: httpx.Client) -> None:
        received[number] = read_to_end(client, path, params=params)

    with serving(app) as client:
        threads = [threading.Thread(target=read, args=(n, client)) for n in range(200)]
        for thread in threads:
            thread.start()
        wait_until(lambda: app.state.hub.count_streams() == 200, within_s=60)
        before = len(looks)
        with database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=NOW)
        for thread in threads:
            thread.join(60)

    assert all(messages[-1].kind == "end" for messages in received)
    assert 1 <= len(looks) - before <= 3


@pytest.mark.only_sqlite
def test_there_are_only_so_many_streams(app: FastAPI, database: Database) -> None:
    app.state.hub.max_streams = 4
    job = add_job(database)
    path = f"/jobs/{job.id}/events"
    add_key(database, "A")
    mine, theirs = bearer(add_key(database, "A")), bearer(add_key(database, "B"))
    with (
        serving(app) as client,
        streaming(client, "/jobs", params=STREAM, headers=mine),
        streaming(client, "/jobs", params=STREAM, headers=mine),
    ):
        too_many_of_mine = client.get("/jobs", params=STREAM, headers=mine)
        with (
            streaming(client, "/jobs", params=STREAM, headers=theirs),
            streaming(client, "/jobs", params=STREAM, headers=theirs),
        ):
            too_many = client.get(path, params=STREAM, headers=bearer(add_key(database, "C")))

    assert too_many_of_mine.status_code == HTTPStatus.TOO_MANY_REQUESTS
    assert int(too_many_of_mine.headers["retry-after"]) > 0
    assert too_many.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert too_many.json()["error"]["code"] == "too_many_streams"


@pytest.mark.only_sqlite
def test_a_quiet_stream_has_comments(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "COMMENT_INTERVAL_S", 0.2)
    job = add_job(database)
    with (
        serving(app) as client,
        client.stream("GET", f"/jobs/{job.id}/events", params=STREAM) as answer,
    ):
        comments = list(islice(filter(is_comment, answer.iter_lines()), 3))

    assert comments == [": the stream is open"] * 3


def is_comment(line: str) -> bool:
    return line.startswith(":")
