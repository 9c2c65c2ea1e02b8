"""Polls /healthz until a line comes in, then prints how often, and how slow the answers were.

It is a process of its own, so that it does not wait for the threads of an attack. It prints the
number of answers, and the slowest answer and the 99th percentile in seconds.
"""

import http.client
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

PAUSE_S = 0.005
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Probe:
    """What another client noticed. Zero until the block of `probing` has ended."""

    answers: int = 0
    slowest_s: float = 0.0
    p99_s: float = 0.0


@contextmanager
def probing(url: str) -> Iterator[Probe]:
    """Probe a service while the block runs."""
    probe = Probe()
    command = [sys.executable, "-m", "tests.malformed.probe", url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield probe
        finally:
            report, _ = process.communicate("stop\n")
    answers, slowest_s, p99_s = report.split()
    probe.answers, probe.slowest_s, probe.p99_s = int(answers), float(slowest_s), float(p99_s)


def main() -> None:
    address = urlsplit(sys.argv[1]).netloc
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    took_s: list[float] = []
    print("ready", flush=True)  # noqa: T201 - for the process that started this one
    while not select.select([sys.stdin], [], [], PAUSE_S)[0] or len(took_s) < 2:
        began_s = time.perf_counter()
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        took_s.append(time.perf_counter() - began_s)
    p99_s = statistics.quantiles(took_s, n=100)[-1]
    print(len(took_s), max(took_s), min(p99_s, max(took_s)))  # noqa: T201


if __name__ == "__main__":
    main()
