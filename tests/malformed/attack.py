"""Sends attacks to a running service, and watches what other clients notice of them."""

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import Queue
from urllib.parse import urlsplit

from tests.malformed.corpus import Attack
from tests.malformed.probe import Probe, probing

SENDERS = 8
"""So many that some still send while others wait for the end of an incomplete request."""

RECEIVE_TIMEOUT_S = 0.5
"""Setting of the service under attack, so that incomplete requests soon end."""

TIMEOUT_S = 120.0


@dataclass(slots=True)
class Outcome:
    """What the service answered, and what a probe noticed meanwhile."""

    statuses: Counter[int | None] = field(default_factory=Counter)
    """Number of attacks by the status of the answer. None for a closed connection."""
    failures: list[str] = field(default_factory=list)
    """Names of the attacks that were answered with a status of 500 or more."""
    probe: Probe = field(default_factory=Probe)


def attack(url: str, attacks: Iterable[Attack], *, senders: int = SENDERS) -> Outcome:
    """Send all attacks, several at once, while a process of its own polls /healthz."""
    outcome = Outcome()
    queue: Queue[Attack | None] = Queue(maxsize=100)
    threads = [
        threading.Thread(target=_send_all, args=(url, queue, outcome)) for _ in range(senders)
    ]
    with probing(url) as outcome.probe:
        for thread in threads:
            thread.start()
        for each in attacks:
            queue.put(each)
        for _ in threads:
            queue.put(None)
        for thread in threads:
            thread.join()
    return outcome


def _send_all(url: str, queue: "Queue[Attack | None]", outcome: Outcome) -> None:
    while (each := queue.get()) is not None:
        status = send(url, each.request)
        outcome.statuses[status] += 1
        if status is not None and status >= 500:
            outcome.failures.append(f"{status}: {each.name}")


def send(url: str, request: bytes) -> int | None:
    """Send the bytes. Returns the status of the first answer, or None if there is none."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
        answer = http.client.HTTPResponse(connection)
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            connection.sendall(request)
        try:
            answer.begin()
        except (ConnectionError, http.client.HTTPException):
            return None
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            answer.read()
        return answer.status
