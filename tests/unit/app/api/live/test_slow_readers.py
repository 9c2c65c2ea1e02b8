"""A reader that is slower than its job: it misses nothing, and takes no memory of the service."""

import asyncio
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from app.api.live import topic as topic_module
from app.api.live.hub import Hub
from app.api.live.jobs import FollowedJob, JobState, stream_job
from app.api.live.messages import Cursor
from app.api.live.topic import Topic
from app.api.metrics import RequestMetrics
from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.leases import LeaseRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from tests.builders import NOW, add_job, build_metrics, claim
from tests.streams import Message, parse_messages


async def stay_admitted() -> None:
    """The key of the reader stays valid."""


async def read_after(app: FastAPI, job_id: str, act: Callable[[], None], *, times: int) -> bytes:
    """What a reader gets that reads nothing but the beginning until `act` was done so often."""
    hub = Hub(app.state.resources.database, RequestMetrics(), max_connections=10)
    job = FollowedJob(app.state.resources, DEFAULT_PROJECT_ID, job_id)
    project = DEFAULT_PROJECT_ID
    reader = await hub.join(job_id, job.look, project_id=project, recheck=stay_admitted)
    stream = stream_job(hub, job, reader, Cursor())
    received = [await anext(stream)]
    received.append(await anext(stream))  # the events so far: now it follows what is published
    for _ in range(times):
        await asyncio.to_thread(act)
        await hub.refresh(reader.topic)
    received += [part async for part in stream]
    hub.leave(reader)
    await hub.close()
    return b"".join(received)


@pytest.mark.parametrize("kept_bytes", [1, 2000, 10**6])
def test_a_slow_reader_gets_everything_once(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(topic_module, "MAX_KEPT_BYTES", kept_bytes)
    job = add_job(database)
    lease = claim(database)
    numbers = iter(range(1, 9))

    def train() -> None:
        step = next(numbers)
        with database.writing() as session:
            leases = LeaseRepository(session)
            rows = [build_metrics(step)]
            leases.record_steps(lease, rows, tokens_per_second=None, estimated_finish_at=None)
            if step == 8:
                leases.finish(lease, JobStatus.CANCELLED, now=NOW)

    sent = asyncio.run(read_after(app, job.id, train, times=8))

    messages: list[Message] = [*parse_messages(sent.decode().split("\n"))]
    assert [one.data["step"] for one in messages if one.kind == "step"] == list(range(1, 9))
    events = [one.data["id"] for one in messages if one.kind == "event"]
    assert len(set(events)) == len(events)
    assert messages[-1].kind == "end"


@pytest.mark.only_sqlite
def test_only_so_much_is_kept(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_module, "MAX_KEPT_BYTES", 25)
    job = FollowedJob(app.state.resources, DEFAULT_PROJECT_ID, add_job(database).id)
    topic: Topic[JobState] = Topic(job.look)
    topic.take(job.look(None))

    for _ in range(5):
        topic.publish(b"0123456789")

    assert topic.published == 5
    kept = [topic.part(number) for number in range(5)]
    assert [part is not None for part in kept] == [False, False, False, True, True]
