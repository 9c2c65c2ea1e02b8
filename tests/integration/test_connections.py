"""Connections that no decent client makes: slow, silent, endless, too many, or lying."""

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.api.http_protocol import PROGRESS_BYTES
from tests.builders import TEXT_LINE
from tests.waiting import wait_until
from tunery import service_root
from tunery.local_service import LocalService

TIMEOUT_S = 1.0
PATIENCE_S = 20.0
BYTES_PER_S = 10 * 2**20
LIMITS = {
    "receive_timeout_s": str(TIMEOUT_S),
    "send_timeout_s": str(TIMEOUT_S),
    "max_receive_s": "6",
    "max_connections": "40",
    "min_free_bytes": "0",
    "metrics_port": "0",
}
SECURITY_HEADERS = {
    "cache-control",
    "content-security-policy",
    "cross-origin-resource-policy",
    "referrer-policy",
    "x-content-type-options",
}
FORM_HEAD = (
    b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
FORM_END = b"\r\n--X--\r\n"
UPLOAD = (
    b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    b"content-type: multipart/form-data; boundary=X\r\ncontent-length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with LocalService(tmp_path_factory.mktemp("data"), LIMITS, workers=0) as service:
        yield service


def connect(service: LocalService) -> socket.socket:
    parts = urlsplit(service.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), PATIENCE_S)


def read_all(connection: socket.socket) -> bytes:
    """What the service sends until it closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65_536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = headers_of(answer)
    assert headers["x-request-id"].startswith("req_")
    assert headers.keys() >= SECURITY_HEADERS
    return int(head.split()[1]), json.loads(body)["error"]


def headers_of(answer: bytes) -> dict[str, str]:
    _, *lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return {name: text for name, _, text in (line.partition(": ") for line in lines)}


def access_lines(service: LocalService, answer: bytes) -> list[str]:
    """What the log says of the request that was answered so, once it says something."""
    request_id = headers_of(answer)["x-request-id"]

    def find() -> list[str]:
        log = service.processes["api"].log().splitlines()
        return [line for line in log if "[app.access]" in line and request_id in line]

    return wait_until(find, within_s=PATIENCE_S)


def count_refused(service: LocalService) -> int:
    """Requests in the metrics that were refused before their head was read."""
    address = service.processes["api"].wait_for(r"metrics on (\S+)")[1]
    labels = r'\{method="other",route="other",status="[45]xx"\}'
    pattern = rf"^tunery_http_request_duration_seconds_count{labels} (\d+)"
    return sum(map(int, re.findall(pattern, httpx.get(address).text, re.MULTILINE)))


def test_a_request_that_cannot_be_read_is_logged_once_and_counted(service: LocalService) -> None:
    before = count_refused(service)
    with connect(service) as connection:
        connection.sendall(b"no http\r\n\r\n")
        answer = read_all(connection)

    assert error_of(answer)[1]["code"] == "invalid_http"
    (line,) = access_lines(service, answer)
    assert re.search(r"- - 400 \d+ ms .*outcome=refused code=invalid_http", line)
    assert count_refused(service) == before + 1


def test_a_body_that_stops_is_logged_once_with_its_path(service: LocalService) -> None:
    before = count_refused(service)
    with connect(service) as connection:
        connection.sendall(UPLOAD % 10_000 + FORM_HEAD)
        answer = read_all(connection)

    (line,) = access_lines(service, answer)
    assert re.search(r"POST /v1/files 408 \d+ ms .*outcome=refused code=request_timeout", line)
    assert count_refused(service) == before


def test_what_follows_a_request_in_one_piece_is_logged_with_it(service: LocalService) -> None:
    """The application has not seen the request yet when the answer is sent."""
    with connect(service) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nno http\r\n\r\n")
        answer = read_all(connection)

    assert error_of(answer)[1]["code"] == "invalid_http"
    (line,) = access_lines(service, answer)
    assert re.search(r"GET /v1/models 400 \d+ ms .*outcome=refused code=invalid_http", line)


def send_slowly(connection: socket.socket, piece: bytes) -> None:
    """Send a piece again and again until the service has had enough."""
    connection.settimeout(0.1)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            connection.sendall(piece)
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    connection.settimeout(PATIENCE_S)


def test_a_silent_connection_is_closed_without_an_answer(service: LocalService) -> None:
    began_s = time.monotonic()
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(service)) for _ in range(30)]

        assert [read_all(one) for one in silent] == [b""] * 30
    assert time.monotonic() - began_s < TIMEOUT_S + 5


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"", b"\r\n", id="blank lines"),
        pytest.param(b"GET /a", b"a", id="request line"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"a: b\r\n", id="headers"),
        pytest.param(UPLOAD % 10_000, b"-", id="body"),
        pytest.param(UPLOAD % 10_000_000, b"-" * 100, id="large body"),
        pytest.param(
            UPLOAD.replace(b"content-length: %d", b"transfer-encoding: chunked"),
            b"1\r\na\r\n",
            id="chunks",
        ),
    ],
)
def test_a_request_that_trickles_in_is_cut_off(
    service: LocalService, beginning: bytes, piece: bytes
) -> None:
    with connect(service) as connection:
        connection.sendall(beginning)
        send_slowly(connection, piece)
        answer = read_all(connection)

    if answer:  # with bytes on their way, the connection may be reset before it is read
        status, error = error_of(answer)
        assert (status, error["code"]) == (408, "request_timeout")


def test_a_request_that_stops_is_told_why(service: LocalService) -> None:
    with connect(service) as connection:
        connection.sendall(UPLOAD % 10_000 + FORM_HEAD)
        status, error = error_of(read_all(connection))

    assert (status, error["code"]) == (408, "request_timeout")


def test_a_request_that_makes_progress_may_take_longer(service: LocalService) -> None:
    body = FORM_HEAD + TEXT_LINE * (6 * PROGRESS_BYTES // len(TEXT_LINE)) + FORM_END
    with connect(service) as connection:
        began_s = time.monotonic()
        connection.sendall(UPLOAD % len(body))
        connection.settimeout(TIMEOUT_S / 2)
        for start in range(0, len(body), PROGRESS_BYTES):
            connection.sendall(body[start : start + PROGRESS_BYTES])
            if start + PROGRESS_BYTES < len(body):
                with pytest.raises(TimeoutError):
                    connection.recv(1)
        connection.settimeout(PATIENCE_S)
        answer = connection.recv(65_536)

    assert time.monotonic() - began_s > 2 * TIMEOUT_S
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_request_that_never_ends_is_cut_off(service: LocalService) -> None:
    piece = b"x" * PROGRESS_BYTES
    began_s = time.monotonic()
    with connect(service) as connection:
        connection.sendall(UPLOAD % 2**28 + FORM_HEAD)
        send_slowly(connection, piece)
        read_all(connection)

    assert 5 < time.monotonic() - began_s < 15


@pytest.fixture(scope="module")
def large_file(service: LocalService) -> str:
    content = b'{"text": "' + b"x" * 2**20 + b'"}\n'
    answer = httpx.post(
        f"{service.base_url}/files",
        data={"purpose": "fine-tune"},
        files={"file": ("a", content * 24)},
        timeout=PATIENCE_S,
    )
    return answer.json()["id"]


def test_a_client_that_does_not_read_is_cut_off(service: LocalService, large_file: str) -> None:
    request = f"GET /v1/files/{large_file}/content HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    log = service.processes["api"]
    with connect(service) as connection:
        connection.sendall(request.encode())
        wait_until(lambda: "did not read an answer" in log.log(), within_s=PATIENCE_S)

        assert len(read_all(connection)) < 24 * 2**20


def test_a_client_that_reads_slowly_gets_all(service: LocalService, large_file: str) -> None:
    path = f"/v1/files/{large_file}/content"
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    received, pause = 0, threading.Event()
    with connect(service) as connection:
        began_s = time.monotonic()
        connection.sendall(request.encode())
        while piece := connection.recv(2**20):
            received += len(piece)
            ahead_s = received / BYTES_PER_S - (time.monotonic() - began_s)
            pause.wait(max(0.0, ahead_s))

    assert received > 24 * 2**20
    assert time.monotonic() - began_s > 2 * TIMEOUT_S


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"content-length: -1\r\n", id="negative"),
        pytest.param(b"content-length: ten\r\n", id="no number"),
        pytest.param(b"content-length: 10, 20\r\n", id="a list"),
        pytest.param(b"content-length: 10\r\ncontent-length: 20\r\n", id="two"),
        pytest.param(b"content-length: 10\r\ntransfer-encoding: chunked\r\n", id="and chunked"),
        pytest.param(b"transfer-encoding: chunked\r\ncontent-length: 10\r\n", id="chunked and"),
        pytest.param(b"transfer-encoding: gzip\r\n", id="unknown encoding"),
        pytest.param(b"content-length: 99999999999999999999\r\n", id="huge"),
        pytest.param(b"content-length: 5\r\n", id="too short"),
        pytest.param(b"content-length: 100000\r\n", id="too long"),
        pytest.param(b"content-length: 9999999999\r\n", id="larger than a file may be"),
        pytest.param(b"", id="none"),
    ],
)
def test_a_length_that_lies_is_refused(service: LocalService, headers: bytes) -> None:
    body = FORM_HEAD + TEXT_LINE + FORM_END
    request = (
        b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"content-type: multipart/form-data; boundary=X\r\n" + headers + b"\r\n" + body
    )
    before = httpx.get(f"{service.base_url}/files").json()
    with connect(service) as connection:
        connection.sendall(request)
        answer = read_all(connection)

    assert 400 <= int(answer.split()[1]) < 500
    assert b'"error"' in answer
    assert httpx.get(f"{service.base_url}/files").json() == before


def test_a_new_client_takes_the_place_of_one_that_waits(service: LocalService) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(service)) for _ in range(60)]
        answer = httpx.get(f"{service.url}/healthz")
        read_all(silent[0])

    assert answer.status_code == 200
    assert "All connections are taken" in service.processes["api"].log()


def test_a_client_too_many_is_told_so(service: LocalService) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            busy = stack.enter_context(connect(service))
            busy.sendall(UPLOAD % 10_000 + FORM_HEAD)
        with connect(service) as connection:
            answer = read_all(connection)
    status, error = error_of(answer)

    assert (status, error["code"]) == (503, "too_many_connections")
    assert headers_of(answer)["retry-after"] == "2"
    (line,) = access_lines(service, answer)
    assert re.search(r"- - 503 \d+ ms .*outcome=failed code=too_many_connections", line)


def test_few_open_files_lower_the_number_of_connections(tmp_path: Path) -> None:
    limited = 'ulimit -n 300 && exec "$0" -P -m app "$@"'
    program = ["env", f"PYTHONPATH={service_root()}", "sh", "-c", limited, sys.executable]
    with (
        LocalService(tmp_path, {"max_uploads": "4"}, workers=0, program=program) as service,
        ExitStack() as stack,
    ):
        for _ in range(400):
            stack.enter_context(connect(service))

        assert httpx.get(f"{service.url}/healthz").status_code == 200
        assert "accepts 20 connections instead of 2000" in service.processes["api"].log()
