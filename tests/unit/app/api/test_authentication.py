"""Keys are looked up rarely, so that a poll costs no more than without; but changes count soon."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from app.api.admission.authentication import (
    MAX_AGE_S,
    USE_INTERVAL_S,
    Authenticated,
    Authenticator,
)
from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER, Caller
from app.core.access.api_keys import read_key_id
from app.core.clock import utc_now
from app.core.db.backend import DatabaseUnusableError
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Database, Session
from app.core.errors import DatabaseBusyError, UnauthenticatedError
from tests.builders import add_job, add_key, bearer
from tests.fakes import FrozenClock

LOOK_UP = "FROM api_keys JOIN projects"
"""Part of the statement that looks a key up."""


class Bench:
    """An authenticator whose clocks move only when they are told to."""

    def __init__(self, app: FastAPI, database: Database, *, may_be_keyless: bool = True) -> None:
        self.database = database
        self.engine = app.state.resources.database.engine
        self.clock = FrozenClock(utc_now())
        self.monotonic_s = 0.0
        self.resources: Any = app.state.resources
        self.authenticator = Authenticator(
            self.resources,
            may_be_keyless=may_be_keyless,
            clock=self.clock,
            monotonic_s=lambda: self.monotonic_s,
        )

    async def ask(self, key: str) -> Caller:
        caller = (await self.authenticator.authenticate(f"Bearer {key}")).caller
        await asyncio.gather(*self.authenticator._writes)
        return caller

    def knows(self, known: Authenticated) -> bool:
        return self.authenticator.knows(known, self.resources.database.version())

    def pass_time(self, seconds: float) -> None:
        self.monotonic_s += seconds
        self.clock.advance(timedelta(seconds=seconds))

    def revoke_all(self) -> None:
        with self.database.writing() as session:
            for key, _ in KeyRepository(session).list_all():
                KeyRepository(session).revoke(key.id, now=self.clock())

    def last_use(self) -> Any:
        """When the only key was last used."""
        (used_at,) = self.last_uses().values()
        return used_at

    def last_uses(self) -> dict[str | None, Any]:
        """By id of the key."""
        with self.database.reading() as session:
            return {key.id: key.last_used_at for key, _ in KeyRepository(session).list_all()}


@pytest.fixture
def make(app: FastAPI, database: Database) -> Callable[..., Bench]:
    return lambda **options: Bench(app, database, **options)


def test_without_keys_this_machine_may_do_everything(make: Callable[..., Bench]) -> None:
    bench = make()

    assert asyncio.run(bench.ask("unused")) == LOCAL_CALLER


def test_without_keys_an_address_of_the_network_serves_nobody(make: Callable[..., Bench]) -> None:
    bench = make(may_be_keyless=False)

    with pytest.raises(UnauthenticatedError):
        asyncio.run(bench.ask("unused"))


def test_a_first_key_is_needed_within_a_second(make: Callable[..., Bench]) -> None:
    bench = make()

    async def act() -> None:
        await bench.ask("unused")
        add_key(bench.database)
        bench.pass_time(MAX_AGE_S)
        with pytest.raises(UnauthenticatedError):
            await bench.ask("unused")

    asyncio.run(act())


def test_a_revoked_key_is_refused_within_a_second(make: Callable[..., Bench]) -> None:
    bench = make()
    key = add_key(bench.database)

    async def act() -> None:
        for _ in range(3):
            await bench.ask(key)
            bench.pass_time(0.4)
        bench.revoke_all()
        bench.pass_time(MAX_AGE_S)
        with pytest.raises(UnauthenticatedError, match="was revoked"):
            await bench.ask(key)

    asyncio.run(act())


def test_a_key_expires_to_the_second(make: Callable[..., Bench]) -> None:
    bench = make()
    key = add_key(bench.database, expires_at=bench.clock() + timedelta(seconds=0.5))

    async def act() -> None:
        await bench.ask(key)
        bench.pass_time(0.5)
        with pytest.raises(UnauthenticatedError, match="expired on"):
            await bench.ask(key)

    asyncio.run(act())


@pytest.mark.only_sqlite  # PostgreSQL does not say cheaply whether anything has changed
def test_a_key_is_looked_up_again_only_once_something_has_changed(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    key = add_key(bench.database)
    statements: list[str] = []
    event.listen(bench.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    async def act() -> None:
        await bench.ask(key)
        bench.pass_time(MAX_AGE_S)  # its first use was written, which is a change
        for _ in range(100):
            await bench.ask(key)
            bench.pass_time(0.5)
        add_job(bench.database)
        await bench.ask(key)

    asyncio.run(act())

    assert sum(LOOK_UP in statement for statement in statements) == 3


def test_a_lookup_that_a_change_overtakes_is_not_remembered(make: Callable[..., Bench]) -> None:
    """It was read before the revocation, and arrives after the authenticator has forgotten."""
    bench = make()
    key = add_key(bench.database)

    def revoke_meanwhile(*args: Any) -> None:
        if LOOK_UP in args[2] and not bench.monotonic_s:
            bench.revoke_all()
            bench.pass_time(MAX_AGE_S)
            bench.authenticator._forget_if_changed(bench.resources.database.version())

    event.listen(bench.engine, "after_cursor_execute", revoke_meanwhile)

    async def act() -> None:
        await bench.ask(key)
        with pytest.raises(UnauthenticatedError, match="was revoked"):
            await bench.ask(key)

    asyncio.run(act())


def test_the_last_use_is_written_at_most_once_a_minute(make: Callable[..., Bench]) -> None:
    bench = make()
    key = add_key(bench.database)

    async def act() -> list[Any]:
        uses: list[Any] = []
        for wait_s in (0.0, USE_INTERVAL_S - 1, 1.0):
            bench.pass_time(wait_s)
            await bench.ask(key)
            uses.append(bench.last_use())
        return uses

    first, same, later = asyncio.run(act())

    assert first == same
    assert later - first == timedelta(seconds=USE_INTERVAL_S)


def test_a_key_that_is_used_no_more_is_written_and_forgotten(make: Callable[..., Bench]) -> None:
    bench = make()
    old, new = add_key(bench.database), add_key(bench.database)

    async def act() -> Any:
        await bench.ask(old)
        bench.pass_time(1.0)
        await bench.ask(old)
        used_at = bench.clock()
        for _ in range(2):
            bench.pass_time(USE_INTERVAL_S)
            await bench.ask(new)
        return used_at

    used_at = asyncio.run(act())

    assert bench.last_uses()[read_key_id(old)] == used_at
    assert list(bench.authenticator._use_written_at_s) == [read_key_id(new)]
    assert bench.authenticator._uses == {}


@pytest.mark.parametrize("error", [DatabaseBusyError("busy"), DatabaseUnusableError("damaged")])
def test_no_request_is_lost_that_could_not_be_written(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench = make()
    key = add_key(bench.database)

    def refuse(_: Session) -> None:
        raise error

    async def act() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(bench.resources.database.backend, "commit", refuse)
            for _ in range(3):
                await bench.ask(key)
                bench.pass_time(USE_INTERVAL_S)
            await bench.authenticator.close()
        await bench.ask(key)
        await bench.authenticator.close()

    asyncio.run(act())

    with bench.database.reading() as session:
        usage = UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=bench.clock())
    assert usage.requests == 4


def test_a_database_that_cannot_be_written_stops_no_shutdown(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = bearer(add_key(database))
    own: Database = app.state.resources.database
    disposed: list[bool] = []

    def refuse(_: Session) -> None:
        raise DatabaseUnusableError("damaged")

    with TestClient(app, base_url="http://127.0.0.1") as client:
        monkeypatch.setattr(own, "dispose", lambda: disposed.append(True))
        monkeypatch.setattr(own.backend, "commit", refuse)
        for _ in range(2):  # the second one is to be written at the end
            assert client.get("/v1/files", headers=headers).status_code == 200

    assert disposed == [True]


def test_who_was_admitted_is_known_until_the_keys_are_read_again(
    make: Callable[..., Bench], database: Database
) -> None:
    key = add_key(database, expires_at=utc_now() + timedelta(hours=1))
    bench = make()

    async def admit_and_look() -> list[bool]:
        known = await bench.authenticator.authenticate(f"Bearer {key}")
        await asyncio.gather(*bench.authenticator._writes)
        seen = [bench.knows(known)]
        bench.pass_time(MAX_AGE_S + 0.1)
        bench.revoke_all()
        seen.append(bench.knows(known))
        return seen

    assert asyncio.run(admit_and_look()) == [True, False]


@pytest.mark.only_sqlite
def test_who_was_admitted_is_not_known_once_the_key_has_expired(
    make: Callable[..., Bench], database: Database
) -> None:
    key = add_key(database, expires_at=utc_now() + timedelta(seconds=2))
    bench = make()

    async def admit_and_look() -> list[bool]:
        await bench.authenticator.authenticate(f"Bearer {key}")
        await asyncio.gather(*bench.authenticator._writes)
        bench.pass_time(MAX_AGE_S + 0.1)  # so that the use, a commit, is seen
        known = await bench.authenticator.authenticate(f"Bearer {key}")
        seen = [bench.knows(known)]
        bench.clock.advance(timedelta(seconds=2))
        seen.append(bench.knows(known))
        return seen

    assert asyncio.run(admit_and_look()) == [True, False]


def test_without_keys_everybody_is_known_until_the_first_one(
    make: Callable[..., Bench], database: Database
) -> None:
    bench = make()

    async def admit_and_look() -> list[bool]:
        known = await bench.authenticator.authenticate("")
        seen = [bench.knows(known)]
        add_key(database)
        bench.pass_time(MAX_AGE_S + 0.1)
        seen.append(bench.knows(known))
        return seen

    assert asyncio.run(admit_and_look()) == [True, False]
