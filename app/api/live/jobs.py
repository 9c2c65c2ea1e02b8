"""The stream of one job: its state, its events and its steps."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial

from app.api.deps import Resources
from app.api.live.hub import Hub
from app.api.live.messages import Cursor, opening, write_message
from app.api.live.topic import Reader, Update
from app.core.db.repositories.events import ChangeRepository, EventRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.job.loss_log import json_line
from app.schemas.fine_tuning_jobs import JobDeleted
from app.schemas.job_results import EventRead
from app.services import jobs as job_service

_BATCH = 500
"""Maximum number of events, and of steps, that are read at once."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as its readers know it."""

    body: str
    """The job as `GET /v1/fine_tuning/jobs/{id}` shows it."""
    cursor: Cursor
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    """Events and steps after a cursor."""

    messages: bytes
    cursor: Cursor
    """The cursor after them."""
    has_more: bool


class FollowedJob:
    """Reads one job of one project for its stream."""

    def __init__(self, resources: Resources, project_id: str, job_id: str) -> None:
        self._resources = resources
        self._project_id = project_id
        self._job_id = job_id

    def look(self, before: JobState | None) -> Update[JobState]:
        """Read what has changed since then, or the present state if that is None.

        Raises:
            NotFoundError: there is no such job, and there was none before.
        """
        try:
            return self._resources.read(partial(self._look, before))
        except NotFoundError:
            if before is None:
                raise
        deleted = JobDeleted(id=self._job_id).model_dump_json()
        ending = write_message("end", deleted, before.cursor)
        return Update(replace(before, is_deleted=True), ending=ending)

    def replay(self, after: Cursor, until: Cursor) -> _Batch:
        """Read a batch of what lies between two cursors."""
        return self._resources.read(partial(self._read_after, after=after, until=until))

    def _look(self, before: JobState | None, session: Session) -> Update[JobState]:
        job = JobRepository(session, self._project_id).get(self._job_id)
        shown = job_service.read_job(session, job, self._resources.settings)
        body = shown.model_dump_json(by_alias=True)
        batch = _Batch(b"", self._cursor_of_now(session, job.event_count), has_more=False)
        if before is not None:
            batch = self._read_after(session, after=before.cursor)
        is_new = before is not None and before.body != body
        news = write_message("job", body, before.cursor) if before and is_new else b""
        is_over = job.status.is_terminal and not batch.has_more
        return Update(
            JobState(body, batch.cursor),
            news=news + batch.messages,
            has_more=batch.has_more,
            ending=write_message("end", body, batch.cursor) if is_over else b"",
        )

    def _cursor_of_now(self, session: Session, event_count: int) -> Cursor:
        newest = ChangeRepository(session, self._project_id).find_newest_step(self._job_id)
        if newest is None:
            return Cursor(event_count)
        return Cursor(event_count, newest.attempt, newest.metrics.step + 1)

    def _read_after(
        self, session: Session, *, after: Cursor, until: Cursor | None = None
    ) -> _Batch:
        """Read events, and steps once there are no more events: so the order is always the same."""
        cursor, messages = after, list[bytes]()
        events = EventRepository(session, self._project_id).list_after(
            self._job_id, after.event, limit=_BATCH
        )
        for event in events:
            following = replace(cursor, event=event.number)
            if until is not None and following.event > until.event:
                break
            cursor = following
            text = EventRead.model_validate(event).model_dump_json(by_alias=True)
            messages.append(write_message("event", text, cursor))
        if len(messages) == _BATCH:
            return _Batch(b"".join(messages), cursor, has_more=True)
        steps = ChangeRepository(session, self._project_id).list_steps_after(
            self._job_id, attempt=after.attempt, next_step=after.next_step, limit=_BATCH
        )
        has_more = len(steps) == _BATCH
        for step in steps:
            next_step = step.metrics.step + 1
            following = replace(cursor, attempt=step.attempt, next_step=next_step)
            if until is not None and following.is_beyond(replace(until, event=cursor.event)):
                has_more = False
                break
            cursor = following
            messages.append(write_message("step", json_line(step.metrics).rstrip(), cursor))
        return _Batch(b"".join(messages), cursor, has_more)


async def stream_job(
    hub: Hub, job: FollowedJob, reader: Reader[JobState], after: Cursor | None
) -> AsyncGenerator[bytes]:
    """The messages for a reader: what is in the database already, and then what comes.

    A reader that is too slow for what comes reads the database again from where it was.

    Args:
        hub: see above.
        job: what is followed.
        reader: has joined the topic of this job.
        after: what the client has received already; None to begin with what comes from now on.
    """
    if after is not None and after.is_beyond(reader.topic.state.cursor):
        await hub.refresh(reader.topic)  # another process has shown the client something newer
    state = reader.catch_up()
    cursor = state.cursor if after is None else after
    yield opening() + write_message("job", state.body, cursor)
    while not reader.is_over:
        target = reader.catch_up().cursor
        while target.is_beyond(cursor) and not reader.is_over:
            batch = await hub.read(job.replay, cursor, target)
            yield batch.messages
            cursor = batch.cursor if batch.has_more else target
        async for part in reader.news():
            cursor = part.state.cursor
            yield part.messages
