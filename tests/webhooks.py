"""A receiver of webhooks that a test controls, and the rows that make it get some."""

import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from sqlalchemy import select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.transitions import settle
from app.core.db.repositories.webhooks import WebhookRepository
from app.core.db.session import Database
from app.core.db.webhook_tables import WebhookDelivery, WebhookEndpoint
from app.core.ids import IdPrefix, new_id
from app.core.job.status import JobStatus
from app.core.webhooks.events import WebhookEventType
from app.webhooks.messages import new_secret
from app.webhooks.targets import Address, TargetPolicy
from tests.builders import NOW, build_job
from tests.webhook_sending import LOOPBACK

__all__ = ["LOOPBACK"]


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    """With names in lower case."""
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """An HTTP server on a port of 127.0.0.1, which keeps its port when it is down for a while."""

    host: str = "127.0.0.1"
    status: int = 200
    location: str | None = None
    """Where its answers redirect to."""
    refuses: str | None = None
    """Id of an event that it answers with 500."""
    holds_from: int | None = None
    """Number of the request, counted from 1, from which on it keeps everybody waiting."""
    requests: list[Request] = field(default_factory=list[Request])
    most_at_once: int = 0
    """Over all paths, how many requests it had at once on the same path."""

    def __post_init__(self) -> None:
        receiver, lock, active = self, threading.Lock(), Counter[str]()
        self._released = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): text for name, text in self.headers.items()}
                with lock:
                    active[self.path] += 1
                    receiver.most_at_once = max(receiver.most_at_once, active[self.path])
                    receiver.requests.append(Request(self.path, headers, body))
                    number = len(receiver.requests)
                if receiver.holds_from is not None and number >= receiver.holds_from:
                    receiver._released.wait(60)
                    self.close_connection = True
                    return
                with lock:
                    active[self.path] -= 1
                is_refused = headers.get("webhook-id") == receiver.refuses
                self.send_response(500 if receiver.refuses and is_refused else receiver.status)
                if receiver.location is not None:
                    self.send_header("location", receiver.location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                pass

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen on the same port as before."""
        self._released.clear()
        self._server = ThreadingHTTPServer((self.host, self.port), self._handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse every connection from now on, and leave requests that wait without an answer."""
        if self._server is not None:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class SlowResolver:
    """Finds no address before `released` is set."""

    def __init__(self) -> None:
        self.asked = list[str]()
        self.released = threading.Event()

    def __call__(self, host: str, _port: int) -> Sequence[Address]:
        self.asked.append(host)
        self.released.wait(60)
        return []


@contextmanager
def receiving(**options: Any) -> Generator[Receiver]:
    receiver = Receiver(**options)
    try:
        yield receiver
    finally:
        receiver.stop()


def allow(*receivers: Receiver) -> TargetPolicy:
    """What allows these receivers and nothing else."""
    return TargetPolicy(",".join(receiver.origin for receiver in receivers), LOOPBACK)


def build_endpoint(url: str, *, now: datetime = NOW, **changes: Any) -> WebhookEndpoint:
    """An endpoint that subscribes to the end of every job but a failed one."""
    values: dict[str, Any] = {
        "id": new_id(IdPrefix.WEBHOOK_ENDPOINT),
        "project_id": DEFAULT_PROJECT_ID,
        "name": "receiver",
        "url": url,
        "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.cancelled"],
        "secret": new_secret(),
        "created_at": now,
        "updated_at": now,
        "retry_at": now,
        "leased_until": now,
    }
    return WebhookEndpoint(**(values | changes))


def add_endpoint(
    database: Database, url: str, *, now: datetime = NOW, **changes: Any
) -> WebhookEndpoint:
    """An endpoint in the database, as `build_endpoint` makes it."""
    endpoint = build_endpoint(url, now=now, **changes)
    with database.writing() as session:
        WebhookRepository(session, endpoint.project_id).add(endpoint)
    return endpoint


def get_endpoint(database: Database, endpoint_id: str) -> WebhookEndpoint:
    with database.reading() as session:
        return WebhookRepository(session, DEFAULT_PROJECT_ID).get(endpoint_id)


def end_job(database: Database, *, now: datetime = NOW) -> str:
    """Add a job and cancel it. Returns its id."""
    job = build_job(created_at=now)
    with database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).add(job)
        settle(session, job, JobStatus.CANCELLED, now=now)
    return job.id


def queue_event(database: Database, *, now: datetime = NOW) -> None:
    """Queue an event that no row of a job stands behind, which is quicker than a job."""
    with database.writing() as session:
        webhooks = WebhookRepository(session, DEFAULT_PROJECT_ID)
        webhooks.announce(WebhookEventType.SUCCEEDED, new_id(IdPrefix.JOB), now=now)


def list_deliveries(database: Database) -> list[WebhookDelivery]:
    """Every event, the oldest first."""
    with database.reading() as session:
        query = select(WebhookDelivery).order_by(WebhookDelivery.event_id)
        return list(session.scalars(query))


def unwrap(request: Request, secret: str, *, at: datetime, patch: pytest.MonkeyPatch) -> Any:
    """What the stock client makes of a message, if it believes it at this time."""
    client = openai.OpenAI(api_key="unused", webhook_secret=secret)
    with patch.context() as context:
        context.setattr("openai.lib._webhooks.time.time", at.timestamp)
        return client.webhooks.unwrap(request.body, request.headers)
