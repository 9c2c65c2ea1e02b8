"""The stream of a project: its jobs, each time that one is created or changed."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b

from app.api.deps import Resources
from app.api.live.messages import COMMENT, opening, write_message
from app.api.live.topic import Reader, Update
from app.core.db.repositories.events import ChangeRepository
from app.core.db.session import Session
from app.services import jobs as job_service

OVERLAP = timedelta(seconds=30)
"""How far each look goes back behind the newest change. The clocks of two machines may differ by
as much, and a transaction may take as long."""

_MAX_JOBS = 200
"""Maximum number of jobs that are read at once."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A job as its readers know it."""

    updated_at: datetime
    digest: bytes = b""
    """Digest of its JSON; empty if it was not read."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """What the readers of a project know of the jobs that were written not long ago."""

    newest: datetime
    """When a job was last written."""
    seen: Mapping[str, _Seen] = field(default_factory=dict[str, _Seen])


class FollowedProject:
    """Reads the jobs of one project for its stream."""

    def __init__(self, resources: Resources, project_id: str) -> None:
        self._resources = resources
        self._project_id = project_id

    def look(self, before: FeedState | None) -> Update[FeedState]:
        """Read the jobs that have changed since then, or where things stand if that is None."""
        return self._resources.read(partial(self._look, before))

    def _look(self, before: FeedState | None, session: Session) -> Update[FeedState]:
        changes = ChangeRepository(session, self._project_id)
        if before is None:
            newest = changes.find_last_change() or _BEGINNING
            recent = changes.list_changed(newest - OVERLAP)
            return Update(FeedState(newest, {job_id: _Seen(at) for job_id, at in recent.items()}))
        written = changes.list_changed(before.newest - OVERLAP)
        known = {job_id: seen for job_id, seen in before.seen.items() if job_id in written}
        new = [
            job_id
            for job_id, at in written.items()
            if job_id not in known or known[job_id].updated_at != at
        ]
        news: list[bytes] = []
        for job_id, text in self._show(session, new[:_MAX_JOBS]).items():
            seen = _Seen(written[job_id], blake2b(text.encode(), digest_size=16).digest())
            if job_id not in known or known[job_id].digest != seen.digest:
                news.append(write_message("job", text))
            known[job_id] = seen
        has_more = len(new) > _MAX_JOBS
        newest = before.newest if has_more else max([before.newest, *written.values()])
        return Update(FeedState(newest, known), news=b"".join(news), has_more=has_more)

    def _show(self, session: Session, job_ids: list[str]) -> dict[str, str]:
        """The jobs as the list of jobs shows them, in JSON, by their ids."""
        jobs = ChangeRepository(session, self._project_id).list_jobs(job_ids)
        shown = job_service.read_jobs(session, jobs, self._resources.settings)
        return {job_id: job.model_dump_json(by_alias=True) for job_id, job in shown.items()}


async def stream_project(reader: Reader[FeedState]) -> AsyncGenerator[bytes]:
    """The messages for a reader, from when it joined. One that is too slow has to connect again."""
    yield opening() + COMMENT
    async for part in reader.news():
        yield part.messages
