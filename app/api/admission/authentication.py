"""Finds out who sent a request: by its API key, or because it comes from this machine."""

import asyncio
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from anyio import to_thread

from app.api.deps import Resources
from app.core.access import LOCAL_CALLER, Caller, Scope
from app.core.access.api_keys import hash_key, read_key_id
from app.core.clock import steady_s, utc_now
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Session
from app.core.errors import OperatorError, ServiceError, UnauthenticatedError

AUTHENTICATED = "authenticated"
"""Key in the state of a request that holds its `Authenticated`. Absent as `CALLER` is."""

MAX_AGE_S = 1.0
"""Seconds after which a change of the keys counts at the latest, such as a revocation."""

USE_INTERVAL_S = 60.0
"""Interval at which the last use of a key is written, in seconds."""

_MAX_REMEMBERED = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Who sent a request."""

    caller: Caller
    project_name: str | None = None
    """Name of the project; None where no keys are used."""
    expires_at: datetime | None = None
    """When the key expires; None if it does not."""
    max_requests_per_minute: int | None = None
    """Limit of the project; None if it has none."""
    read_at_s: float = 0.0
    """When the authenticator has read the keys, by its own clock."""

    def is_expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(slots=True)
class _Uses:
    """Requests with a key that are not written down yet."""

    project_id: str
    last_at: datetime
    requests: int = 0


_LOCAL = Authenticated(LOCAL_CALLER)


class Authenticator:
    """Looks keys up, and remembers them while nothing in the database changes, or for a second.

    Args:
        may_be_keyless: whether requests need no key until the first key is created.
    """

    def __init__(
        self,
        resources: Resources,
        *,
        may_be_keyless: bool,
        clock: Callable[[], datetime] = utc_now,
        monotonic_s: Callable[[], float] = steady_s,
    ) -> None:
        self._resources = resources
        self._may_be_keyless = may_be_keyless
        self._clock = clock
        self._monotonic_s = monotonic_s
        self._version: int | None = None
        self._read_at_s = float("-inf")
        self._needs_key: bool | None = None
        self._remembered: dict[str, Authenticated] = {}
        self._use_written_at_s: dict[str, float] = {}
        self._uses: dict[str, _Uses] = {}
        self._writes: set[asyncio.Task[None]] = set()

    async def authenticate(self, authorization: str) -> Authenticated:
        """Find out who sent a request with this header `Authorization`, which may be empty.

        Call it from the event loop.

        Raises:
            UnauthenticatedError: a key is needed, and this is none, or not a valid one. The message
                says what is wrong, and not how to send a valid key.
            DatabaseBusyError: the key could not be looked up.
        """
        known = await self.check(authorization)
        self.note_use(known.caller)
        return known

    async def check(self, authorization: str) -> Authenticated:
        """Like `authenticate`, but not counted as a request with the key.

        Raises:
            UnauthenticatedError: as `authenticate`, like the other errors.
        """
        self._forget_if_changed(self._resources.database.version())
        if not await self._is_key_needed():
            return _LOCAL
        known = self._remembered.get(authorization) or await self._look_up(authorization)
        if known.is_expired(self._clock()):
            raise UnauthenticatedError(
                f"This API key expired on {known.expires_at:%Y-%m-%d %H:%M} UTC."
            )
        return known

    def knows(self, known: Authenticated, version: int | None) -> bool:
        """Whether `authenticate` would find the same again, without a look into the database.

        Call it from the event loop.

        Args:
            version: of the database, read just now.
        """
        self._forget_if_changed(version)
        if known is _LOCAL:
            return self._needs_key is False
        return known.read_at_s == self._read_at_s and not known.is_expired(self._clock())

    async def close(self) -> None:
        """Write down the uses that are not written yet. No request may come any more.

        Raises nothing: what cannot be written now is lost.
        """
        uses, self._uses = self._uses, {}
        self._start_writing(uses)
        await asyncio.gather(*self._writes, return_exceptions=True)

    def _forget_if_changed(self, version: int | None) -> None:
        now_s = self._monotonic_s()
        is_unchanged = version is not None and version == self._version
        if not is_unchanged and now_s - self._read_at_s >= MAX_AGE_S:
            self._version, self._read_at_s = version, now_s
            self._needs_key = None
            self._remembered.clear()

    async def _is_key_needed(self) -> bool:
        if self._needs_key is not None:
            return self._needs_key
        read_at_s = self._read_at_s
        needs_key = not self._may_be_keyless or await to_thread.run_sync(self._has_keys)
        if read_at_s == self._read_at_s:  # otherwise a newer version may say something else
            self._needs_key = needs_key
        return needs_key

    async def _look_up(self, authorization: str) -> Authenticated:
        key = _read_bearer(authorization)
        key_id = read_key_id(key)
        if key_id is None:
            raise UnauthenticatedError("The API key is malformed or was mistyped.")
        read_at_s = self._read_at_s
        found = await to_thread.run_sync(self._find, key_id, hash_key(key))
        found = replace(found, read_at_s=read_at_s)
        if read_at_s == self._read_at_s and len(self._remembered) < _MAX_REMEMBERED:
            self._remembered[authorization] = found
        return found

    def _has_keys(self) -> bool:
        return self._resources.read(lambda session: KeyRepository(session).is_any())

    def _find(self, key_id: str, sha256: str) -> Authenticated:
        found = self._resources.read(lambda session: KeyRepository(session).find(key_id))
        if found is None or not hmac.compare_digest(found[0].sha256, sha256):
            raise UnauthenticatedError("The API key is not a key of this service.")
        row, project = found
        if row.revoked_at is not None:
            raise UnauthenticatedError("This API key was revoked.")
        scopes = frozenset(Scope(scope) for scope in row.scopes)
        return Authenticated(
            Caller(project.id, scopes, row.id),
            project.name,
            row.expires_at,
            project.max_requests_per_minute,
        )

    def note_use(self, caller: Caller) -> None:
        """Count the request. The counts are written neither now nor often, so no request waits."""
        key_id = caller.key_id
        if key_id is None:
            return
        now, now_s = self._clock(), self._monotonic_s()
        uses = self._uses.setdefault(key_id, _Uses(caller.project_id, now))
        uses.requests += 1
        uses.last_at = now
        if now_s - self._use_written_at_s.get(key_id, float("-inf")) >= USE_INTERVAL_S:
            self._write_due_uses(now_s)

    def _write_due_uses(self, now_s: float) -> None:
        """Write the uses of every key that is due, also of those that are not used any more."""
        recent = {
            key_id: at_s
            for key_id, at_s in self._use_written_at_s.items()
            if now_s - at_s < USE_INTERVAL_S
        }
        due = {key_id: uses for key_id, uses in self._uses.items() if key_id not in recent}
        self._use_written_at_s = recent | dict.fromkeys(due, now_s)
        self._uses = {key_id: uses for key_id, uses in self._uses.items() if key_id in recent}
        self._start_writing(due)

    def _start_writing(self, uses: dict[str, _Uses]) -> None:
        write = asyncio.create_task(self._write(uses))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def _write(self, uses: dict[str, _Uses]) -> None:
        try:
            await to_thread.run_sync(self._write_each, uses)
        except (ServiceError, OperatorError) as error:
            logger.warning("the use of a key was not recorded: %s", error)
            for key_id, its in uses.items():  # they are written with the next ones
                if key_id in self._uses:
                    self._uses[key_id].requests += its.requests
                else:
                    self._uses[key_id] = its

    def _write_each(self, uses: dict[str, _Uses]) -> None:
        """Write down uses. Each that is written is removed from the dictionary."""
        while uses:
            key_id, its = next(iter(uses.items()))
            self._resources.write(partial(_record, key_id, its))
            del uses[key_id]


def _record(key_id: str, uses: _Uses, session: Session) -> None:
    if KeyRepository(session).record_use(key_id, now=uses.last_at):
        UsageRepository(session, uses.project_id).add(requests=uses.requests, now=uses.last_at)


def _read_bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthenticatedError("You did not provide an API key.")
    return key.strip()
