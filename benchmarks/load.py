"""Sends GETs at a steady rate, whatever becomes of those before, and says how long each took.

    python -m benchmarks.load http://127.0.0.1:8000 --rate 200 --seconds 30 /v1/models /healthz

It runs in a process of its own, and does as little as it can: what it computes, it takes from what
is measured. Each request goes over a connection that waits for nothing; there are as many as are
needed, so a slow answer delays no other request. It asks as a client does that keeps answers: with
the ETag of the last one.
"""

import argparse
import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TIMEOUT_S = 30
MIN_CONNECTIONS = 10
"""Polls come from several clients, and not all from one."""
_READ_BYTES = 256 * 1024
_GOOD = (b"200", b"304")
_UNCHANGED = b"HTTP/1.1 304"


@dataclass
class Found:
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unchanged: int = 0
    """Answers that said that nothing had changed."""


@dataclass
class _Target:
    """A path, and the request for it as it is sent."""

    path: str
    head: bytes
    request: bytes = b""

    def know(self, tag: bytes) -> None:
        """Ask from now on whether the answer still has this tag; empty if it has none."""
        known = b"if-none-match: " + tag + b"\r\n" if tag else b""
        self.request = self.head + known + b"\r\n"


class _Connection:
    """A connection that is kept alive. It waits for one answer at most."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self.target = _Target("", b"")
        self._received = b""

    def send(self, target: _Target, due_s: float) -> None:
        self.target, self.due_s, self._received = target, due_s, b""
        self.socket.sendall(target.request)

    def receive(self) -> tuple[bytes, bytes] | None:
        """The status and the ETag of the answer, or None while a part of it is missing."""
        part = self.socket.recv(_READ_BYTES)
        if not part:
            raise EOFError("The server has closed the connection.")
        if part.startswith(_UNCHANGED) and part.endswith(b"\r\n\r\n"):  # most answers, in one piece
            return b"304", b""
        self._received += part
        head, end, body = self._received.partition(b"\r\n\r\n")
        status = head[9:12]
        if not end or (status != b"304" and len(body) < int(_header(head, b"content-length"))):
            return None
        return status, _header(head, b"etag")


def _header(head: bytes, name: bytes) -> bytes:
    start = head.lower().find(b"\r\n" + name + b":")
    return head[start:].partition(b":")[2].partition(b"\r\n")[0].strip() if start >= 0 else b""


class Generator:
    """Asks for each path in turn, `rate` times a second in all.

    Args:
        key: API key; empty if there is none.
        burst: requests that are sent at the same time, as by a page that asks for several things.
        is_lazy: look for answers only when the next request is due. That takes half of the
            processor time, and a latency is up to the time between two requests too long.
    """

    def __init__(
        self,
        url: str,
        paths: list[str],
        *,
        rate: float,
        key: str = "",
        burst: int = 1,
        is_lazy: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        headers = f"host: {parts.hostname}\r\n"
        headers += f"authorization: Bearer {key}\r\n" if key else ""
        by_path = {
            path: _Target(path, f"GET {path} HTTP/1.1\r\n{headers}".encode()) for path in paths
        }
        for target in by_path.values():
            target.know(b"")
        self._targets = [by_path[path] for path in paths]
        self._rate = rate
        self._burst = burst
        self._is_lazy = is_lazy
        self._idle: deque[_Connection] = deque()
        self._waiting: dict[int, _Connection] = {}
        self._readable = select.epoll()
        self.found = Found()

    def run(self, seconds: float) -> Found:
        """Send for so long, and wait for the last answers."""
        began_s = time.perf_counter()
        for number in range(int(self._rate * seconds)):
            due_s = began_s + number // self._burst * self._burst / self._rate
            if number % self._burst == 0:
                self._wait_until(due_s)
            self._ask(self._targets[number % len(self._targets)], due_s)
        end_s = time.perf_counter() + TIMEOUT_S
        while self._waiting and (left_s := end_s - time.perf_counter()) > 0:
            self._receive(left_s)
        self.found.errors += [f"no answer for {one.target.path}" for one in self._waiting.values()]
        for connection in [*self._idle, *self._waiting.values()]:
            connection.socket.close()
        return self.found

    def _wait_until(self, due_s: float) -> None:
        while (left_s := due_s - time.perf_counter()) > 0:
            if self._is_lazy or not self._waiting:
                time.sleep(left_s)
            else:
                self._receive(left_s)
        if self._waiting:
            self._receive(0)

    def _ask(self, target: _Target, due_s: float) -> None:
        try:
            are_enough = len(self._idle) + len(self._waiting) >= MIN_CONNECTIONS
            connection = self._idle.popleft() if self._idle and are_enough else self._connect()
        except OSError as error:
            self.found.errors.append(repr(error))
            return
        self._waiting[connection.socket.fileno()] = connection
        try:
            connection.send(target, due_s)
        except OSError as error:
            self._give_up(connection, error)

    def _connect(self) -> _Connection:
        connection = _Connection(self._address)
        self._readable.register(connection.socket, select.EPOLLIN)
        return connection

    def _receive(self, timeout_s: float) -> None:
        for descriptor, _ in self._readable.poll(timeout_s):
            connection = self._waiting.get(descriptor)
            if connection is None:  # the server has closed a connection that nobody uses
                self._drop_idle(descriptor)
                continue
            try:
                answer = connection.receive()
            except (OSError, EOFError, ValueError) as error:
                self._give_up(connection, error)
                continue
            if answer is not None:
                self._note(connection, *answer)

    def _note(self, connection: _Connection, status: bytes, tag: bytes) -> None:
        self._idle.append(self._waiting.pop(connection.socket.fileno()))
        self.found.latencies_ms.append(1000 * (time.perf_counter() - connection.due_s))
        self.found.unchanged += status == b"304"
        if status not in _GOOD:
            self.found.errors.append(f"{status.decode()} of {connection.target.path}")
        elif status == b"200":
            connection.target.know(tag)

    def _give_up(self, connection: _Connection, error: Exception) -> None:
        self.found.errors.append(repr(error))
        del self._waiting[connection.socket.fileno()]
        connection.socket.close()

    def _drop_idle(self, descriptor: int) -> None:
        for connection in [one for one in self._idle if one.socket.fileno() == descriptor]:
            self._idle.remove(connection)
            connection.socket.close()


def percentile(values: list[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--key", default="")
    parser.add_argument("--burst", type=int, default=1, help="requests sent at the same time")
    parser.add_argument("--lazy", action="store_true", help="look for answers only when sending")
    options = parser.parse_args(arguments)
    generator = Generator(
        options.url,
        options.paths,
        rate=options.rate,
        key=options.key,
        burst=options.burst,
        is_lazy=options.lazy,
    )
    began_s = time.process_time()
    found = generator.run(options.seconds)
    own_cpu_s = time.process_time() - began_s
    latencies = found.latencies_ms or [float("nan")]
    report = {
        "requests": len(found.latencies_ms),
        "unchanged": found.unchanged,
        "errors": len(found.errors),
        "first_errors": found.errors[:3],
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": max(latencies),
        "own_cpu_s": own_cpu_s,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
