"""Polls over a connection: the same bytes get the same answer, for no longer than it holds."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.api.admission.authentication import MAX_AGE_S
from app.core.access import DEFAULT_PROJECT_ID
from app.core.access.api_keys import read_key_id
from app.core.clock import utc_now
from app.core.db.repositories.projects.access import KeyRepository, ProjectsRepository
from app.core.db.repositories.projects.usage import UsageRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from tests.builders import add_job, add_key, write_catalogue
from tests.waiting import wait_until
from tunery.local_service import LocalService

JOBS = "/v1/fine_tuning/jobs"
PATIENCE_S = 30.0
KEEP_ALIVE_S = 5.0
"""How long uvicorn keeps a connection open that is not used."""
SLACK_S = 1.0
"""For the time that a request takes while other tests run."""
MANY = 100
SETTINGS = {"min_free_bytes": "0", "metrics_port": "0", "install_default_model": "false"}


def serve(data_dir: Path) -> LocalService:
    write_catalogue(data_dir)
    return LocalService(data_dir, SETTINGS, workers=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with serve(tmp_path_factory.mktemp("data")) as service:
        yield service


@pytest.fixture
def stored(service: LocalService) -> Iterator[Database]:
    with opened(service) as database:
        yield database


@contextmanager
def opened(service: LocalService) -> Iterator[Database]:
    """The database of a service, as another process has it."""
    database = Database(f"sqlite:///{service.data_dir}/tunery.db")
    yield database
    database.dispose()


class Poller:
    """One connection, over which the same request is sent again and again."""

    def __init__(self, service: LocalService, path: str, key: str, **headers: str) -> None:
        parts = urlsplit(service.url)
        address = (parts.hostname or "", parts.port or 0)
        self.connection = socket.create_connection(address, PATIENCE_S)
        lines = {"Host": "127.0.0.1", "Authorization": f"Bearer {key}", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.request = f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()

    def poll(self) -> httpx.Response:
        self.connection.sendall(self.request)
        return self.read()

    def poll_times(self, count: int) -> list[httpx.Response]:
        return [self.poll() for _ in range(count)]

    def poll_until_repeated(self) -> list[httpx.Response]:
        """The first use of a key is written down, which is a commit like any other."""
        answers = [self.poll()]
        while len(answers) == len(set(ids(answers))):
            answers.append(self.poll())
            assert len(answers) < MANY, "Every request was parsed."
        return answers

    def read(self) -> httpx.Response:
        """The next answer, of which nothing may be left afterwards."""
        answer = HTTPResponse(self.connection, method="GET")
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


Connect = Callable[..., Poller]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes pollers, whose connections are closed after the test."""
    with ExitStack() as stack:

        def make(*arguments: Any, **headers: str) -> Poller:
            poller = Poller(*arguments, **headers)
            stack.enter_context(poller.connection)
            return poller

        yield make


def statuses(answers: list[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


def ids(answers: list[httpx.Response]) -> list[str]:
    return [answer.headers["x-request-id"] for answer in answers]


def test_the_same_bytes_get_the_same_answer(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    poller = connect(service, f"{JOBS}/{add_job(stored).id}", add_key(stored))

    first, *_, repeated = poller.poll_until_repeated()

    assert repeated.content == first.content
    assert repeated.headers.keys() == first.headers.keys()
    for name in first.headers.keys() - {"date", "x-request-id"}:
        assert repeated.headers[name] == first.headers[name]


def test_polls_are_counted_measured_and_logged(tmp_path: Path, connect: Connect) -> None:
    with serve(tmp_path / "data") as service, opened(service) as stored:
        key = add_key(stored)
        path = f"{JOBS}/{add_job(stored).id}"
        tag = connect(service, path, key).poll().headers["etag"]
        poller = connect(service, path, key, **{"If-None-Match": tag})
        answers = poller.poll_until_repeated() + poller.poll_times(3)
        address = service.processes["api"].wait_for(r"metrics on (\S+)")[1]
        metrics = httpx.get(address).text
        service.stop()
        with stored.reading() as session:
            used = UsageRepository(session, DEFAULT_PROJECT_ID).measure(now=utc_now()).requests

    labels = f'{{method="GET",route="{JOBS}/{{job_id}}",status="3xx"}}'
    count = f"tunery_http_request_duration_seconds_count{labels} {len(answers)}.0"
    lines = re.findall(rf"GET {path} 304 \d+ ms .*", service.processes["api"].log())
    logged = [re.search(r" polls=(\d+)\b", line) for line in lines]
    assert set(statuses(answers)) == {304}
    assert count in metrics
    assert used == len(answers) + 1
    assert sum(int(found[1]) if found else 1 for found in logged) == len(answers)
    assert any(logged)
    known = {"outcome": "ok", "key_id": read_key_id(key), "project": DEFAULT_PROJECT_ID}
    for name, text in known.items():
        assert all(f"{name}={text}" in line for line in lines)
    for request_id in ids(answers):
        assert sum(request_id in line for line in lines) == 1


def test_a_commit_of_any_process_is_seen_by_the_next_poll(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    job = add_job(stored)
    poller = connect(service, f"{JOBS}/{job.id}", add_key(stored))
    before = poller.poll_until_repeated()[-1]

    with stored.writing() as session:
        session.get_one(Job, job.id).priority = 7
    after = poller.poll()

    assert (before.json()["priority"], after.json()["priority"]) == (0, 7)
    assert before.headers["etag"] != after.headers["etag"]


def test_a_revoked_key_is_refused_within_a_second(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    key = add_key(stored)
    poller = connect(service, JOBS, key)
    poller.poll_until_repeated()

    with stored.writing() as session:
        KeyRepository(session).revoke(read_key_id(key) or "", now=utc_now())
    revoked_s = time.monotonic()
    wait_until(lambda: poller.poll().status_code == HTTPStatus.UNAUTHORIZED, within_s=PATIENCE_S)

    assert time.monotonic() - revoked_s < MAX_AGE_S + SLACK_S
    assert statuses(poller.poll_times(3)) == [401] * 3


def test_polls_count_against_the_limit_of_their_project(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    key = add_key(stored, "limited")
    with stored.writing() as session:
        ProjectsRepository(session).get("limited").max_requests_per_minute = 5

    answered = statuses(connect(service, JOBS, key).poll_times(7))

    assert answered == [200] * 5 + [429] * 2


def test_the_same_request_of_another_project_gets_its_own_answer(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    path = f"{JOBS}/{add_job(stored).id}"
    ours = connect(service, path, add_key(stored)).poll_until_repeated()
    known = {"If-None-Match": ours[0].headers["etag"]}

    theirs = connect(service, path, add_key(stored, "other"), **known).poll_times(3)

    assert statuses(theirs) == [404] * 3


def test_a_poll_may_arrive_in_pieces_or_with_the_next_one(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    path, key = f"{JOBS}/{add_job(stored).id}", add_key(stored)
    poller, other = (connect(service, path, key) for _ in range(2))
    whole = poller.poll_until_repeated()[0]

    for cut in (1, 20, len(poller.request) - 1):
        poller.connection.sendall(poller.request[:cut])
        other.poll()  # once it is answered, the service has read the piece
        poller.connection.sendall(poller.request[cut:])
        assert poller.read().content == whole.content
    assert poller.poll().content == whole.content
    poller.connection.sendall(poller.request * 3)
    piled = b""
    while piled.count(whole.content) < 3:
        piled += poller.connection.recv(65_536)

    assert piled.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert poller.poll().content == whole.content


def test_a_connection_that_is_to_close_closes(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    path, key = f"{JOBS}/{add_job(stored).id}", add_key(stored)

    for _ in range(3):
        poller = connect(service, path, key, Connection="close")
        assert poller.poll().status_code == HTTPStatus.OK
        assert poller.connection.recv(1) == b""


def test_a_connection_stays_open_while_it_polls_and_not_much_longer(
    service: LocalService, stored: Database, connect: Connect
) -> None:
    poller = connect(service, JOBS, add_key(stored))
    began_s = time.monotonic()

    def poll_long() -> bool:
        return poller.poll().is_success and time.monotonic() - began_s > KEEP_ALIVE_S + SLACK_S

    wait_until(poll_long, within_s=PATIENCE_S)
    idle_s = time.monotonic()

    assert poller.connection.recv(1) == b""
    assert time.monotonic() - idle_s > KEEP_ALIVE_S - SLACK_S
