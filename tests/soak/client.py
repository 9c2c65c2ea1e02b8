"""One user of a service, with a key and a connection of its own."""

import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.builders import bearer, build_chat_file

TIMEOUT_S = 60.0

KEEP_ALIVE_S = 2.0
"""Less than the service keeps an idle connection, so that a request never meets its end."""


@dataclass
class Answers:
    """What all clients were answered."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    problems: list[str] = field(default_factory=list[str])
    """What the service may not do, such as answer with 500."""


class Client:
    """One user with a key and a connection of its own."""

    def __init__(self, base_url: str, key: str, answers: Answers) -> None:
        self.url = base_url
        self.key = key
        self._answers = answers
        self._http = httpx.Client(
            base_url=base_url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
        )

    def ask(
        self,
        method: str,
        path: str,
        *,
        expect: tuple[int, ...] = (200,),
        key: str | None = None,
        **body: Any,
    ) -> Any:
        """Send a request. Returns the JSON of its answer, or an empty object if it is none.

        Args:
            expect: statuses that are no problem, besides 503, which says that nothing was done.
            key: another key than the client's own.
        """
        headers = bearer(key or self.key) | body.pop("headers", {})
        answer = self._http.request(method, path, headers=headers, **body)
        if not self._is_expected(answer.status_code, expect):
            self._answers.problems.append(
                f"{method} {path}: {answer.status_code} {answer.text[:200]}"
            )
        is_json = answer.headers.get("content-type") == "application/json"
        return answer.json() if is_json and answer.status_code == 200 else {}

    def read_some(
        self, path: str, *, expect: tuple[int, ...], method: str = "GET", **body: Any
    ) -> None:
        """Close the connection after the first bytes of an answer."""
        with self._http.stream(method, path, headers=bearer(self.key), **body) as answer:
            if not self._is_expected(answer.status_code, expect):
                self._answers.problems.append(f"{method} {path}: {answer.status_code}")
            next(answer.iter_raw(1024), None)

    def upload(self, rows: int, *, first: int = 0) -> str | None:
        """Upload a file. Returns its id, or None if the service had no time."""
        files = {"file": ("train.jsonl", build_chat_file(rows, first=first))}
        data = {"purpose": "fine-tune"}
        return self.ask("POST", "/files", files=files, data=data).get("id")

    def list_jobs(self) -> list[dict[str, Any]]:
        """All jobs, the newest first."""
        return self.ask("GET", "/fine_tuning/jobs", params={"limit": 100}).get("data", [])

    def send_raw(self, content: bytes, *, then_reset: bool) -> None:
        """Send these bytes on a connection of their own, and close it without waiting.

        Args:
            then_reset: whether what is on its way is thrown away.
        """
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname or "", address.port or 80)) as connection:
            if then_reset:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(content)

    def close(self) -> None:
        self._http.close()

    def _is_expected(self, status: int, expect: tuple[int, ...]) -> bool:
        self._answers.statuses[status] += 1
        return status in (*expect, HTTPStatus.SERVICE_UNAVAILABLE)
