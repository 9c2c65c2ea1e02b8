"""Readers of a job while the API is killed and started again: no gap, nothing twice."""

import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from tests.builders import NOW, add_job, build_metrics, claim
from tests.streams import PATIENCE_S, Message, parse_messages
from tests.waiting import wait_until
from tunery.local_service import LocalService

READERS = 3
STEPS_BEFORE_KILL = 8
KILLS = 3


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/data/tunery.db"
        return
    postgres: Any = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield url


class Follower:
    """A client that connects again until the stream has ended."""

    def __init__(self, service: LocalService, job_id: str) -> None:
        self._url = f"{service.base_url}/fine_tuning/jobs/{job_id}/events"
        self.messages: list[Message] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        cursor = ""
        while not self._has_ended():
            headers = {"last-event-id": cursor} if cursor else {}
            try:
                with httpx.stream(
                    "GET",
                    self._url,
                    params={"stream": "true"},
                    headers=headers,
                    timeout=PATIENCE_S,
                ) as answer:
                    for message in parse_messages(answer.iter_lines()):
                        self.messages.append(message)
                        cursor = message.id
            except httpx.TransportError:
                continue

    def _has_ended(self) -> bool:
        return bool(self.messages) and self.messages[-1].kind == "end"

    def wait(self) -> None:
        self._thread.join(PATIENCE_S)
        assert self._has_ended(), self.messages[-1:]

    def steps(self) -> list[int]:
        return [one.data["step"] for one in self.messages if one.kind == "step"]

    def has_step(self, step: int) -> bool:
        return step in self.steps()

    def events(self) -> list[str]:
        return [one.data["id"] for one in self.messages if one.kind == "event"]


def record(database: Database, lease: Lease, step: int) -> None:
    rows = [build_metrics(step)]
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )
        events = EventRepository(session, lease.project_id)
        events.add_metrics(lease.job_id, rows, total_steps=99, now=NOW)


def test_readers_notice_nothing_of_an_api_that_is_killed(url: str, tmp_path: Path) -> None:
    settings = {"database_url": url, "min_free_bytes": "0"}
    with LocalService(tmp_path / "data", settings, workers=0) as service:
        database = Database(url)
        job = add_job(database)
        lease = claim(database)
        readers = [Follower(service, job.id) for _ in range(READERS)]
        numbers = itertools.count(1)

        for _ in range(KILLS):
            last = 0
            for _ in range(STEPS_BEFORE_KILL):
                last = next(numbers)
                record(database, lease, last)
            wait_until(partial(readers[0].has_step, last), within_s=PATIENCE_S)
            service.processes["api"].kill()
            record(database, lease, next(numbers))  # while nobody serves
            service.start("api")
        with database.writing() as session:
            LeaseRepository(session).finish(lease, JobStatus.CANCELLED, now=NOW)
        for reader in readers:
            reader.wait()
        with database.reading() as session:
            events = EventRepository(session, lease.project_id)
            expected = [event.id for event in events.list_after(job.id, 0, limit=999)]
        database.dispose()

    for reader in readers:
        assert reader.steps() == list(range(1, KILLS * (STEPS_BEFORE_KILL + 1) + 1))
        assert reader.events() == expected
