"""Where a request really goes, and what is believed of the answer."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from app.webhooks.client import DeliveryError, WebhookClient
from app.webhooks.resolving import Resolver
from app.webhooks.targets import Address, TargetPolicy, TargetRefusedError
from tests.programs import require_programs
from tests.webhooks import LOOPBACK, Receiver, SlowResolver, allow, receiving

NAME = "receiver.test"
"""A name that nobody can resolve, except for the client of a test."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def slow() -> Iterator[SlowResolver]:
    resolver = SlowResolver()
    yield resolver
    resolver.released.set()


def answering(*answers: str) -> Callable[[str, int], list[Address]]:
    """A resolver that gives one address after the other, then the last one for ever."""
    remaining = list(answers)

    def resolve(_host: str, _port: int) -> list[Address]:
        return [ip_address(remaining.pop(0) if len(remaining) > 1 else remaining[0])]

    return resolve


def named(receiver: Receiver) -> TargetPolicy:
    return TargetPolicy(f"http://{NAME}:{receiver.port}", LOOPBACK)


def test_a_request_goes_to_the_resolved_address_under_the_name(receiver: Receiver) -> None:
    client = WebhookClient(named(receiver), resolve=answering("127.0.0.1"))

    status = client.post(f"http://{NAME}:{receiver.port}/a?b=c", {"webhook-id": "evt_1"}, b"{}")

    assert status == 200
    assert receiver.requests[0].path == "/a?b=c"
    assert receiver.requests[0].headers["host"] == f"{NAME}:{receiver.port}"


def test_a_name_that_resolves_to_a_private_address_is_refused(receiver: Receiver) -> None:
    policy = TargetPolicy(f"http://{NAME}:{receiver.port}, public")

    for name in (f"http://{NAME}:{receiver.port}/", "https://elsewhere.test/"):
        with pytest.raises(TargetRefusedError):
            WebhookClient(policy, resolve=answering("127.0.0.1")).post(name, {}, b"{}")

    assert receiver.requests == []


def test_a_name_that_changes_its_address_after_the_check_gains_nothing() -> None:
    """It is resolved once, and the connection goes to what was checked."""
    with receiving(host="127.0.0.2") as checked, receiving() as inside:
        policy = TargetPolicy(f"http://{NAME}:{checked.port}", LOOPBACK)
        client = WebhookClient(policy, resolve=answering("127.0.0.2", "127.0.0.1"))

        assert client.post(f"http://{NAME}:{checked.port}/", {}, b"{}") == 200

    assert len(checked.requests) == 1
    assert inside.requests == []


def test_the_address_is_checked_again_each_time(receiver: Receiver) -> None:
    client = WebhookClient(named(receiver), resolve=answering("127.0.0.1", "10.0.0.1"))
    client.post(f"http://{NAME}:{receiver.port}/", {}, b"{}")

    with pytest.raises(TargetRefusedError):
        client.post(f"http://{NAME}:{receiver.port}/", {}, b"{}")


def test_a_name_server_that_is_slow_is_not_waited_for(slow: SlowResolver) -> None:
    client = WebhookClient(TargetPolicy("public"), resolve=slow, total_s=0.2)

    with pytest.raises(DeliveryError, match=r"slow\.test was not resolved in time"):
        client.post("https://slow.test/", {}, b"{}")

    assert slow.asked == ["slow.test"]


def test_lookups_that_nobody_waits_for_any_more_are_limited(slow: SlowResolver) -> None:
    """A name server that never answers must not take all of the threads of the machine."""
    resolver = Resolver(slow, max_lookups=2)

    for _ in range(4):
        with pytest.raises(TimeoutError):
            resolver.look_up("slow.test", 443, within_s=0.05)
    assert len(slow.asked) == 2

    slow.released.set()
    assert resolver.look_up("slow.test", 443, within_s=60) == []


def test_an_error_of_the_resolver_is_the_callers() -> None:
    def fail(_host: str, _port: int) -> list[Address]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Resolver(fail).look_up("a.test", 443, within_s=60)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    with receiving(status=status, location=f"{receiver.origin}/inside") as redirecting:
        client = WebhookClient(allow(redirecting, receiver))

        assert client.post(f"{redirecting.origin}/", {}, b"{}") == status

    assert receiver.requests == []


def test_a_proxy_of_the_environment_is_not_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.origin)

        WebhookClient(allow(receiver)).post(f"{receiver.origin}/", {}, b"{}")

        assert proxy.requests == []
    assert len(receiver.requests) == 1


def test_a_receiver_that_is_down_is_reported_as_such(receiver: Receiver) -> None:
    receiver.stop()

    with pytest.raises(DeliveryError, match="No connection"):
        WebhookClient(allow(receiver)).post(f"{receiver.origin}/", {}, b"{}")


def answer_once(listener: socket.socket, send: Callable[[socket.socket], None]) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with closing(connection):
            connection.recv(65536)
            send(connection)

    threading.Thread(target=serve, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def post_to(listener: socket.socket, *, total_s: float) -> int:
    origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = WebhookClient(TargetPolicy(origin, LOOPBACK), total_s=total_s)
    return client.post(f"{origin}/", {}, b"{}")


def test_a_slow_answer_is_cut_off_however_often_a_byte_comes(listener: socket.socket) -> None:
    has_ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        for _ in range(500):  # ten seconds
            if not has_ended.wait(0.02):
                connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")

    answer_once(listener, drip)

    try:
        with pytest.raises(DeliveryError, match="No answer in time"):
            post_to(listener, total_s=0.3)
    finally:
        has_ended.set()


def test_nothing_is_read_of_an_endless_body(listener: socket.socket) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
        with contextlib.suppress(OSError):  # the client hangs up
            while True:
                connection.sendall(bytes(65536))

    answer_once(listener, flood)

    assert post_to(listener, total_s=10) == 200


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 40_000, b""]
)
def test_what_is_no_answer_in_http_is_not_taken_for_one(
    listener: socket.socket, answer: bytes
) -> None:
    answer_once(listener, lambda connection: connection.sendall(answer))

    with pytest.raises(DeliveryError, match="HTTP"):
        post_to(listener, total_s=10)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for NAME and its key, in one file."""
    require_programs("openssl")
    path = tmp_path / "receiver.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    command += ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(b"".join(part.read_bytes() for part in sorted(tmp_path.glob("*.pem"))))
    return path


def test_the_certificate_must_be_that_of_the_name(
    listener: socket.socket, certificate: Path
) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    names: list[str | None] = []
    serving.sni_callback = lambda _tls, name, _context: names.append(name)
    port = listener.getsockname()[1]
    policy = TargetPolicy(f"https://{NAME}:{port}, https://other.test:{port}", LOOPBACK)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                with closing(serving.wrap_socket(connection, server_side=True)) as tls:
                    received = b""
                    while not received.endswith(b"{}") and (piece := tls.recv(65536)):
                        received += piece  # a rest that is not read would reset the connection
                    tls.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            except ssl.SSLError:
                continue
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    client = WebhookClient(policy, resolve=answering("127.0.0.1"), tls=trusting)

    assert client.post(f"https://{NAME}:{port}/", {}, b"{}") == 204
    with pytest.raises(DeliveryError, match="certificate"):
        client.post(f"https://other.test:{port}/", {}, b"{}")
    with pytest.raises(DeliveryError, match="certificate"):  # without the authority of the test
        WebhookClient(policy, resolve=answering("127.0.0.1")).post(
            f"https://{NAME}:{port}/", {}, b"{}"
        )
    assert names[:2] == [NAME, "other.test"]
