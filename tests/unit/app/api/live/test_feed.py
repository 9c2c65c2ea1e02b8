"""The stream of a project: each job that is created or changed, once, as the list shows it."""

from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI

from app.api.live import feed as feed_module
from app.api.live.feed import FeedState, FollowedProject
from app.core.access import DEFAULT_PROJECT_ID
from app.core.clock import utc_now
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from tests.builders import MINUTE, NOW, add_job, add_key, add_project, bearer, claim
from tests.streams import parse_messages, serving, streaming

STREAM = {"stream": "true"}


class Watcher:
    """A reader that looks when it is told to."""

    def __init__(self, app: FastAPI, project_id: str = DEFAULT_PROJECT_ID) -> None:
        self._project = FollowedProject(app.state.resources, project_id)
        self._state: FeedState = self._project.look(None).state
        self.has_more = False

    def look(self) -> list[dict[str, Any]]:
        update = self._project.look(self._state)
        self._state, self.has_more = update.state, update.has_more
        return [message.data for message in parse_messages(update.news.decode().split("\n"))]

    def statuses(self) -> list[tuple[str, str]]:
        return [(job["id"], job["status"]) for job in self.look()]


def test_each_change_is_told_once(app: FastAPI, database: Database) -> None:
    older = add_job(database)
    watcher = Watcher(app)

    nothing = watcher.look()
    newer = add_job(database)
    created = watcher.statuses()
    lease = claim(database)
    claimed = watcher.statuses()
    watcher.look()
    with database.writing() as session:
        LeaseRepository(session).renew(lease, until=NOW + MINUTE)
    renewed = watcher.look()

    assert nothing == renewed == []
    assert created == [(newer.id, "queued")]
    assert claimed == [(older.id, "running")]


def test_a_change_is_told_although_it_is_committed_late(app: FastAPI, database: Database) -> None:
    first, late = add_job(database), add_job(database)
    watcher = Watcher(app)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(first.id, now=NOW)
    told = watcher.statuses()

    with database.writing() as session:
        job = session.get_one(Job, late.id)
        job.suffix = "late"
        job.updated_at = utc_now() - timedelta(seconds=20)

    assert told == [(first.id, "cancelled")]
    assert [job["id"] for job in watcher.look()] == [late.id]
    assert watcher.look() == []


def test_many_changes_are_told_in_parts(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_MAX_JOBS", 2)
    watcher = Watcher(app)
    jobs = [add_job(database).id for _ in range(5)]

    parts = [(watcher.look(), watcher.has_more) for _ in range(4)]

    assert [has_more for _, has_more in parts] == [True, True, False, False]
    assert [job["id"] for part, _ in parts for job in part] == jobs


@pytest.mark.only_sqlite
def test_a_project_hears_nothing_of_another(app: FastAPI, database: Database) -> None:
    add_project(database, "proj-other")
    mine, other = Watcher(app), Watcher(app, "proj-other")

    job = add_job(database, project_id="proj-other")

    assert mine.look() == []
    assert other.statuses() == [(job.id, "queued")]


def test_the_stream_shows_jobs_as_the_list_does(app: FastAPI, database: Database) -> None:
    add_key(database, "Other")
    key = bearer(add_key(database))
    with (
        serving(app) as client,
        streaming(client, "/jobs", params=STREAM, headers=key) as messages,
    ):
        job = add_job(database)
        told = next(messages)
        listed = client.get("/jobs", headers=key).json()["data"]

    assert (told.kind, told.data["id"]) == ("job", job.id)
    assert listed == [told.data]
