"""The benchmarks run, at sizes that say nothing: what they print is there, whatever the figures."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.load import Generator, percentile
from benchmarks.support.fixed_answers import fixed_answers

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    command = [sys.executable, "benchmarks/api.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uploads_are_measured() -> None:
    printed = run("uploads", "--small-mib", "0.1", "--large-mib", "0.5", "--rounds", "1")

    assert len(re.findall(r"\d+ MiB/s; [\d.]+ ms of CPU per MiB", printed)) == 2
    assert len(re.findall(r"peak memory: \d+ MiB after .*, \d+ MiB after", printed)) == 2


def test_checks_are_measured() -> None:
    printed = run("checks", "--mib", "0.1", "--rounds", "1")

    assert len(re.findall(r"^\w.*?( +\d+){4}$", printed, re.MULTILINE)) == 7


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_tables_are_measured(kind: str) -> None:
    sizes = ["--small", "60", "--large", "90", "--rounds", "1"]

    printed = run("tables", "--database", kind, *sizes)

    rows = re.findall(r"^  (\w.*?) +[\d.]+ +[\d.]+   [\d.]+$", printed, re.MULTILINE)
    assert {"create", "retrieve, last in queue", "list, first page", "claim"} <= set(rows)
    assert re.search(r"worst ratio [\d.]+$", printed)


def test_the_cost_of_a_key_is_measured() -> None:
    printed = run("keys", "--polls", "20", "--rounds", "1")

    assert re.search(r"^a key costs [+-][\d.]+ %$", printed, re.MULTILINE)


def test_polls_need_a_base_model() -> None:
    command = [sys.executable, "benchmarks/api.py", "polls", "--model", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "make model" in done.stderr


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/good" else 500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_requests_are_sent_when_due_and_errors_are_counted(url: str) -> None:
    paths = ["/good", "/good", "/bad"]
    found = Generator(url, paths, rate=100, key="sk-any").run(seconds=0.3)

    assert len(found.latencies_ms) == 30
    assert found.errors == ["500 of /bad"] * 10


def test_a_server_that_is_not_there_is_an_error() -> None:
    found = Generator("http://127.0.0.1:9", ["/"], rate=100).run(seconds=0.02)

    assert len(found.errors) == 2


@pytest.mark.parametrize("is_lazy", [False, True])
def test_the_control_says_that_nothing_has_changed(is_lazy: bool) -> None:  # noqa: FBT001
    with fixed_answers() as server:
        found = Generator(server.url, ["/", "/a"], rate=200, is_lazy=is_lazy).run(seconds=0.2)

    assert (len(found.latencies_ms), found.unchanged, found.errors) == (40, 40, [])


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]

    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7], 0.99)) == (
        51,
        100,
        7,
    )
