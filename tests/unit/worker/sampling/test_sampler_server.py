"""Connections that say nothing, or that only ask whether somebody is there."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.core.sampling.health import answers
from tests.sampler_client import Call
from worker.sampling.private_socket import listening_in
from worker.sampling.serving.desk import MAX_ANSWERS, Desk
from worker.sampling.serving.server import Server

RECEIVE_S = 0.2
MORE_THAN_ARE_SERVED_AT_ONCE = MAX_ANSWERS + 100


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """That of a server's socket, with a path that is too long for the system."""
    directory = tmp_path / ("long" * 25)
    control, keeper = os.pipe()
    with listening_in(directory) as listener:
        desk = Desk(queue=0, mode="idle")
        # The keeper closes its own one at another time.
        own = socket.socket(fileno=os.dup(listener.fileno()))
        server = Server(own, control, desk, queue=0, receive_s=RECEIVE_S)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield directory
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


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\1\0{"])
def test_a_client_that_does_not_finish_its_request_is_dropped(directory: Path, said: bytes) -> None:
    with closing(Call(directory)) as call:
        call.socket.sendall(said)

        assert call.socket.recv(1) == b""


def test_silent_clients_keep_nobody_out_for_longer_than_their_time(directory: Path) -> None:
    silent = [Call(directory) for _ in range(MORE_THAN_ARE_SERVED_AT_ONCE)]

    assert answers(directory)
    for call in silent:
        call.close()
