"""Sends GETs at a steady rate, whatever becomes of those before, and says how long each took.

    python -m benchmarks.load http://127.0.0.1:8000 --rate 200 --seconds 30 /v1/models /healthz

It runs in a process of its own, and speaks HTTP itself, so that it costs little beside what is
measured. A request's time begins when it was due, not when there was at last a connection for it.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TIMEOUT_S = 30


@dataclass
class Found:
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Connections:
    """Connections that are kept alive; the one that was used last is used first."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, path: str) -> int:
        """The status of the answer, once its last byte is there."""
        reader, writer = await self._connect()
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self._idle.append((reader, writer))
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


async def send(url: str, paths: list[str], *, rate: float, seconds: float) -> Found:
    """Ask for each path in turn, `rate` times a second in all."""
    parts = urlsplit(url)
    connections = Connections(parts.hostname or "", parts.port or 80)
    found = Found()
    began = time.perf_counter()

    async def ask(path: str, due_s: float) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await connections.get(path)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            found.errors.append(repr(error))
            return
        found.latencies_ms.append(1000 * (time.perf_counter() - began - due_s))
        if status != 200:  # noqa: PLR2004
            found.errors.append(f"{status} of {path}")

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due_s = number / rate
            await asyncio.sleep(max(0.0, began + due_s - time.perf_counter()))
            tasks.create_task(ask(paths[number % len(paths)], due_s))
    connections.close()
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
    options = parser.parse_args(arguments)
    found = asyncio.run(
        send(options.url, options.paths, rate=options.rate, seconds=options.seconds)
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
