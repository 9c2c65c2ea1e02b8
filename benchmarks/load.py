"""Sends GETs at a steady rate, whatever becomes of those before, and says how long each took.

    python -m benchmarks.load http://127.0.0.1:8000 --rate 200 --seconds 30 /v1/models /healthz

It runs in a process of its own, and does as little as it can: what it computes, it takes from what
is measured. One connection is enough, as a request's time begins when it was due: what waits for
a slow answer is counted as waiting.
"""

import argparse
import json
import socket
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TIMEOUT_S = 30
_READ_BYTES = 256 * 1024


@dataclass
class Found:
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Connection:
    """A connection that is kept alive, and opened again after an error."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = (host, port)
        self._headers = f"host: {host}\r\n" + (f"authorization: Bearer {key}\r\n" if key else "")
        self._open: socket.socket | None = None

    def get(self, path: str) -> int:
        """The status of the answer, once its last byte is there."""
        connection = self._open = self._open or self._connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode())
        answer = b""
        while part := connection.recv(_READ_BYTES):
            answer += part
            head, end, body = answer.partition(b"\r\n\r\n")
            if end and len(body) >= _length(head):
                return int(head.split(b" ", 2)[1])
        raise EOFError("The server has closed the connection.")

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def send(url: str, paths: list[str], *, rate: float, seconds: float, key: str = "") -> Found:
    """Ask for each path in turn, `rate` times a second in all, with the API key if there is one."""
    parts = urlsplit(url)
    connection = Connection(parts.hostname or "", parts.port or 80, key)
    found = Found()
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        path, due_s = paths[number % len(paths)], began + number / rate
        time.sleep(max(0.0, due_s - time.perf_counter()))
        try:
            status = connection.get(path)
        except (OSError, EOFError, ValueError) as error:
            found.errors.append(repr(error))
            connection.close()
            continue
        found.latencies_ms.append(1000 * (time.perf_counter() - due_s))
        if status != 200:  # noqa: PLR2004
            found.errors.append(f"{status} of {path}")
    connection.close()
    return found


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
    options = parser.parse_args(arguments)
    found = send(
        options.url, options.paths, rate=options.rate, seconds=options.seconds, key=options.key
    )
    latencies = found.latencies_ms or [float("nan")]
    report = {
        "requests": len(found.latencies_ms),
        "errors": len(found.errors),
        "first_errors": found.errors[:3],
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "max_ms": max(latencies),
        "own_cpu_s": time.process_time(),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
