"""Connections that say nothing, or that only ask whether somebody is there."""

import errno
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.core.sampling.health import answers
from app.core.sampling.messages import ANSWERS, Alive, Ask, Delta, TextPrompt
from tests.sampler_client import PATIENCE_S, Call
from tests.waiting import wait_until
from worker.sampling.private_socket import listening_in
from worker.sampling.pulse import Pulse
from worker.sampling.serving.desk import MAX_ANSWERS, Desk
from worker.sampling.serving.requests import Request
from worker.sampling.serving.server import Server

AT_ONCE_S = 0.2
ALIVE_S = 0.1
MORE_THAN_ARE_SERVED_AT_ONCE = MAX_ANSWERS + 100
MORE_THAN_A_SOCKET_TAKES = 512 * 1024
ASK = Ask(
    project_id="proj_1",
    base_model=Path("tiny"),
    base_model_sha256="b" * 64,
    prompt=TextPrompt(text="Once"),
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """That of a server's socket, with a path that is too long for the system."""
    directory = tmp_path / ("long" * 25)
    with serving_in(directory):
        yield directory


@contextmanager
def serving_in(
    directory: Path, kind: type[socket.socket] = socket.socket, **more: Any
) -> Generator[Desk]:
    """Run a server of whose socket the keeper has made this kind of copy. Yields its desk."""
    usual = {"pulses": (), "say_alive": lambda: None, "alive_s": ALIVE_S}
    control, keeper = os.pipe()
    with listening_in(directory) as listener:
        desk = Desk(queue=0, mode="idle")
        # The keeper closes its own one at another time.
        own = kind(fileno=os.dup(listener.fileno()))
        server = Server(own, control, desk, queue=0, **(usual | more))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield desk
        finally:
            os.close(keeper)
            thread.join()
            os.close(control)
            own.close()


def test_only_its_owner_may_connect(directory: Path) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "socket").stat().st_mode & 0o777 == 0o600


def test_an_empty_request_asks_whether_somebody_is_there(directory: Path) -> None:
    assert answers(directory)
    assert not answers(directory.parent)


def test_a_thread_that_hangs_is_noticed_by_all(tmp_path: Path) -> None:
    pulse, alive = Pulse(), threading.Event()
    with serving_in(tmp_path, pulses=(Pulse(), pulse), say_alive=alive.set):
        assert alive.wait(PATIENCE_S)
        pulse.expect(0)
        wait_until(lambda: not answers(tmp_path), within_s=PATIENCE_S)
        alive.clear()
        assert not alive.wait(3 * ALIVE_S)

        pulse.expect(PATIENCE_S)
        assert alive.wait(PATIENCE_S)
        assert answers(tmp_path)


def test_a_request_that_waits_shows_life(directory: Path) -> None:
    with closing(Call.of(directory, ASK)) as call:
        lines = call.socket.makefile("rb")
        assert [ANSWERS.validate_json(lines.readline()) for _ in range(2)] == [Alive(), Alive()]


class ShortOfDescriptors(socket.socket):
    """A socket of a process that has no descriptors left three times."""

    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.tries <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_without_descriptors_connections_wait_until_there_are_some(tmp_path: Path) -> None:
    with serving_in(tmp_path, ShortOfDescriptors):
        began_s = time.monotonic()
        assert answers(tmp_path)
        assert time.monotonic() - began_s > 2 * ALIVE_S


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\1\0{"])
def test_a_client_that_does_not_finish_its_request_is_dropped(tmp_path: Path, said: bytes) -> None:
    with serving_in(tmp_path, receive_s=AT_ONCE_S), closing(Call(tmp_path)) as call:
        call.socket.sendall(said)

        assert call.socket.recv(1) == b""


def test_silent_clients_keep_nobody_out_for_longer_than_their_time(tmp_path: Path) -> None:
    with serving_in(tmp_path, receive_s=AT_ONCE_S), ExitStack() as stack:
        for _ in range(MORE_THAN_ARE_SERVED_AT_ONCE):
            stack.enter_context(closing(Call(tmp_path)))

        wait_until(lambda: answers(tmp_path), within_s=PATIENCE_S)


def answer_all_of(desk: Desk, directory: Path) -> tuple[Call, Request]:
    """Ask, and have a complete answer sent that the client does not read."""
    call = Call.of(directory, ASK)
    request = wait_until(lambda: desk.take(lambda _: True), within_s=PATIENCE_S)
    assert request is not None
    request.end(Delta(choice=0, text="x" * MORE_THAN_A_SOCKET_TAKES))
    desk.leave(request)
    return call, request


def test_who_does_not_take_the_answers_is_dropped(tmp_path: Path) -> None:
    with serving_in(tmp_path, take_s=AT_ONCE_S) as desk:
        call, request = answer_all_of(desk, tmp_path)
        with closing(call):
            wait_until(lambda: request.is_stopped, within_s=PATIENCE_S)

            assert len(call.socket.makefile("rb").read()) < MORE_THAN_A_SOCKET_TAKES


def test_who_does_not_take_the_answers_keeps_nobody_out(tmp_path: Path) -> None:
    with serving_in(tmp_path) as desk, ExitStack() as stack:
        for _ in range(MORE_THAN_ARE_SERVED_AT_ONCE):
            call, _ = answer_all_of(desk, tmp_path)
            stack.enter_context(closing(call))

        assert answers(tmp_path)
