"""What a reader of a job receives: each event and each step once, in order, from any cursor."""

import json
import random
from dataclasses import replace

import pytest
from fastapi import FastAPI

from app.api.deps import Resources
from app.api.live.jobs import FollowedJob
from app.api.live.messages import Cursor, parse_cursor
from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.db.tables import Event
from app.core.errors import InvalidRequestError
from app.core.storage.local import LocalBlobStore
from tests.builders import NOW, add_job, add_succeeded_job, build_metrics, claim
from tests.streams import Message, parse_messages

NOW_CURSOR = Cursor(10**6, 10**6, 10**6)


@pytest.fixture
def resources(app: FastAPI) -> Resources:
    return app.state.resources


def follow(resources: Resources, job_id: str) -> FollowedJob:
    return FollowedJob(resources, DEFAULT_PROJECT_ID, job_id)


def messages_in(sent: bytes) -> list[Message]:
    return list(parse_messages(sent.decode().split("\n")))


def replay(job: FollowedJob, after: Cursor, until: Cursor = NOW_CURSOR) -> list[Message]:
    """Everything after a cursor."""
    received: list[Message] = []
    while True:
        batch = job.replay(after, until)
        received += messages_in(batch.messages)
        if not batch.has_more:
            return received
        after = batch.cursor


def record(database: Database, lease: Lease, *steps: int) -> None:
    rows = [build_metrics(step) for step in steps]
    with database.writing() as session:
        LeaseRepository(session).record_steps(
            lease, rows, tokens_per_second=None, estimated_finish_at=None
        )
        EventRepository(session, lease.project_id).add_metrics(
            lease.job_id, rows, total_steps=99, now=NOW
        )


def begin(database: Database, *, after_step: int = 0) -> Lease:
    lease = claim(database)
    with database.writing() as session:
        LeaseRepository(session).begin(lease, after_step=after_step, now=NOW)
    return lease


def release(database: Database, lease: Lease) -> None:
    with database.writing() as session:
        RecoveryRepository(session).release(lease, "The worker was stopped", now=NOW)


def list_events(database: Database, job_id: str) -> list[Event]:
    """The events of a job, oldest first."""
    with database.reading() as session:
        events = EventRepository(session, DEFAULT_PROJECT_ID)
        return list(events.list_after(job_id, 0, limit=10_000))


def list_steps(database: Database, job_id: str) -> list[int]:
    with database.reading() as session:
        rows = JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job_id)
    return [row.step for row in rows]


class Client:
    """Keeps what the messages say, as `docs/jobs.md` tells clients to."""

    def __init__(self) -> None:
        self.event_ids: list[str] = []
        self.steps: list[int] = []
        self.cursor = Cursor()

    def receive(self, messages: list[Message]) -> None:
        for kind, cursor, data in messages:
            if kind == "event":
                self.event_ids.append(data["id"])
            elif kind == "step":
                self.steps = [step for step in self.steps if step < data["step"]]
                self.steps.append(data["step"])
            self.cursor = parse_cursor(cursor, param="id")


def test_any_message_can_be_the_last_before_a_new_connection(
    database: Database, resources: Resources, store: LocalBlobStore
) -> None:
    done = add_succeeded_job(database, store, steps=(12,))
    job = follow(resources, done.id)

    everything = replay(job, Cursor())

    kinds = [message.kind for message in everything]
    assert kinds == ["event"] * len(list_events(database, done.id)) + ["step"] * 12
    for number, message in enumerate(everything):
        after = parse_cursor(message.id, param="id")
        assert replay(job, after) == everything[number + 1 :]


def test_a_replay_ends_at_the_cursor_it_is_given(
    database: Database, resources: Resources, store: LocalBlobStore
) -> None:
    done = add_succeeded_job(database, store, steps=(12,))
    job = follow(resources, done.id)
    everything = replay(job, Cursor())

    until = replace(parse_cursor(everything[-4].id, param="id"), event=2)

    both = [message for message in everything[:-3] if message.kind == "step"]
    assert replay(job, Cursor(), until)[2:] == [
        replace_event(message, until.event) for message in both
    ]


def replace_event(message: Message, number: int) -> Message:
    cursor = replace(parse_cursor(message.id, param="id"), event=number)
    return message._replace(id=str(cursor))


def test_a_resumed_attempt_takes_its_readers_back(database: Database, resources: Resources) -> None:
    job = add_job(database)
    first = begin(database)
    record(database, first, *range(1, 21))
    sent = replay(follow(resources, job.id), Cursor())
    release(database, first)

    record(database, begin(database, after_step=18), 19, 20, 21)

    for message in sent[-3:]:
        after = parse_cursor(message.id, param="id")
        missed = replay(follow(resources, job.id), after)
        steps = [message.data["step"] for message in missed if message.kind == "step"]
        assert steps == ([19, 20, 21] if after.next_step > 18 else [*range(after.next_step, 22)])


def test_a_reader_hears_nothing_of_an_attempt_that_has_taken_no_step(
    database: Database, resources: Resources
) -> None:
    job = add_job(database)
    first = begin(database)
    record(database, first, 1, 2, 3)
    after = parse_cursor(replay(follow(resources, job.id), Cursor())[-1].id, param="id")
    release(database, first)
    begin(database, after_step=2)

    missed = replay(follow(resources, job.id), after)

    assert {message.kind for message in missed} == {"event"}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_a_reader_ends_with_what_the_database_has(
    database: Database, resources: Resources, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a history, not a secret
    job = add_job(database)
    live, slow = follow(resources, job.id), follow(resources, job.id)
    update = live.look(None)
    client, slow_client = Client(), Client()
    client.receive(replay(live, Cursor(), update.state.cursor))
    lease, step = begin(database), 0

    for _ in range(60):
        match chance.randrange(5):
            case 0:
                release(database, lease)
                step = chance.randint(0, step)
                lease = begin(database, after_step=step)
            case 1:
                update = live.look(update.state)
                client.receive(messages_in(update.news))
            case 2:
                slow_client.receive(replay(slow, slow_client.cursor))
            case _:
                last = step + chance.randint(1, 4)
                record(database, lease, *range(step + 1, last + 1))
                step = last
    client.receive(messages_in(live.look(update.state).news))
    slow_client.receive(replay(slow, slow_client.cursor))

    expected = [event.id for event in list_events(database, job.id)]
    assert client.event_ids == slow_client.event_ids == expected
    if list_steps(database, job.id):
        written = list_steps(database, job.id)
        assert [step for step in client.steps if step <= written[-1]] == written
        assert [step for step in slow_client.steps if step <= written[-1]] == written


def test_a_long_log_is_read_in_parts(database: Database, resources: Resources) -> None:
    job = add_job(database)
    record(database, begin(database), *range(1, 1202))

    batch = follow(resources, job.id).replay(Cursor(), NOW_CURSOR)
    everything = replay(follow(resources, job.id), Cursor())

    assert batch.has_more
    assert len(messages_in(batch.messages)) == 500
    steps = [message.data["step"] for message in everything if message.kind == "step"]
    assert steps == list(range(1, 1202))


def test_steps_of_another_job_come_before_the_first_attempt(
    database: Database, resources: Resources
) -> None:
    failed, rerun = add_job(database), add_job(database)
    for _ in range(3):
        lease = claim(database)
        release(database, lease)
    lease = claim(database)
    record(database, lease, 1, 2, 3)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).copy_steps(failed.id, rerun.id, last=2)

    cursors = [message.id for message in replay(follow(resources, rerun.id), Cursor())]

    assert [cursor.partition(".")[2] for cursor in cursors[-2:]] == ["0.2", "0.3"]


def test_events_are_numbered_in_the_order_of_their_commits(database: Database) -> None:
    job = add_job(database)
    record(database, begin(database), 1, 2)

    events = list_events(database, job.id)

    assert [event.number for event in events] == list(range(1, len(events) + 1))


def test_a_look_shows_the_job_only_when_it_has_changed(
    database: Database, resources: Resources
) -> None:
    job = add_job(database)
    followed = follow(resources, job.id)
    first = followed.look(None)

    unchanged = followed.look(first.state)
    lease = claim(database)
    changed = followed.look(first.state)
    with database.writing() as session:
        LeaseRepository(session).renew(lease, until=NOW)
    renewed = followed.look(changed.state)

    assert (first.news, unchanged.news, renewed.news) == (b"", b"", b"")
    (message,) = messages_in(changed.news)
    assert (message.kind, message.data["status"]) == ("job", "running")
    assert json.loads(changed.state.body) == message.data


@pytest.mark.parametrize(
    "text",
    ["1", "1.2", "a.b.c", "1.2.3.4", "-1.0.0", "9999999999.0.0", "\N{ARABIC-INDIC DIGIT ONE}.0.0"],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="cursor must be the id of a message") as caught:
        parse_cursor(text, param="cursor")

    assert (caught.value.code, caught.value.param) == ("invalid_cursor", "cursor")
