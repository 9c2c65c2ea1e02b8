"""What no client library would send: requests whose head does not end."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.api.http_protocol import MAX_HEAD_BYTES
from tests.acceptance.processes import InstalledService

PIECE = 4096
TIMEOUT_S = 30
ENDLESS_BYTES = 512 * MAX_HEAD_BYTES
CHUNKED = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledService]:
    with InstalledService(tmp_path_factory.mktemp("service") / "data", workers=0) as service:
        yield service


def connect(service: InstalledService) -> socket.socket:
    parts = urlsplit(service.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), TIMEOUT_S)


def resident_bytes(service: InstalledService) -> int:
    """The most memory that the API has had."""
    status = Path(f"/proc/{service.processes['api'].pid}/status").read_text()
    line = next(one for one in status.splitlines() if "VmHWM" in one)
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        pytest.param(b"GET /", b"a" * PIECE, id="address"),
        pytest.param(b"GET / HTTP/1.1\r\nx: ", b"a" * PIECE, id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"x: 1\r\n" * (PIECE // 6), id="headers"),
        pytest.param(CHUNKED, b"x: 1\r\n" * (PIECE // 6), id="trailers"),
        pytest.param(CHUNKED + b"x: ", b"a" * PIECE, id="one trailer"),
    ],
)
def test_a_head_that_does_not_end_is_refused(
    service: InstalledService, beginning: bytes, piece: bytes
) -> None:
    before = resident_bytes(service)
    sent = 0
    with connect(service) as connection:
        connection.sendall(beginning)
        try:
            while sent < ENDLESS_BYTES:
                connection.sendall(piece)
                sent += len(piece)
            answer = connection.recv(PIECE)
        except ConnectionError:
            answer = b""  # it has refused already, and the answer went with the connection

    assert b" 200 " not in answer
    assert sent < ENDLESS_BYTES or answer.startswith(b"HTTP/1.1 4")
    assert resident_bytes(service) < before + ENDLESS_BYTES // 4


def test_a_head_that_is_too_long_is_told_so(service: InstalledService) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD_BYTES)
        answer = connection.recv(PIECE)

    assert answer.startswith(b"HTTP/1.1 400 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    message = f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes."
    assert (error["code"], error["message"]) == ("invalid_http", message)


def test_requests_after_one_another_are_not_taken_for_one_head(service: InstalledService) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 8000 + b"\r\n\r\n"
    with connect(service) as connection:
        for _ in range(2 * MAX_HEAD_BYTES // len(request)):
            connection.sendall(request)
            answer = connection.recv(PIECE)
            while not answer.endswith(b"}"):
                answer += connection.recv(PIECE)
            assert answer.startswith(b"HTTP/1.1 200 ")
