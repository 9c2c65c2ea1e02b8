"""A request is read from a socket piece by piece. What is none is refused; nothing stays open."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.core.sampling.messages import HEAD, MAX_ASK_BYTES, AdapterRef, Ask, TextPrompt
from tests.effort import effort
from worker.sampling.serving.wire import AskReader, ProtocolError, Received

ASK = Ask(
    project_id="proj_1",
    base_model=Path("/models/tiny"),
    base_model_sha256="b" * 64,
    prompt=TextPrompt(text="Once"),
)
TUNED = ASK.model_copy(
    update={"adapter": AdapterRef(weights_sha256="c" * 64, config_sha256="d" * 64)}
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The API's end and the sampler's."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(0)
    with theirs, ours:
        yield theirs, ours


def frame(ask: Ask) -> bytes:
    body = ask.model_dump_json().encode()
    return HEAD.pack(len(body)) + body


def read_all(reader: AskReader) -> Received | None:
    """Read for as long as there is something to read."""
    for _ in range(100):
        received = reader.read()
        if received is not None:
            return received
    return None


def test_a_request_may_come_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = pair
    reader = AskReader(ours)
    content = frame(ASK)

    for byte in content[:-1]:
        theirs.sendall(bytes([byte]))
        assert reader.read() is None
    theirs.sendall(content[-1:])

    assert reader.read() == Received(ASK, [])


def test_the_files_of_an_adapter_come_with_the_length(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    theirs, ours = pair
    paths = [tmp_path / "weights", tmp_path / "config"]
    for path in paths:
        path.write_text(path.name)
    files = [path.open("rb") for path in paths]
    for file in files:
        file.read()  # whoever opens it may have read it
    content = frame(TUNED)

    socket.send_fds(theirs, [content[:4]], [file.fileno() for file in files])
    theirs.sendall(content[4:])
    received = read_all(AskReader(ours))

    assert received is not None
    assert [file.read() for file in received.files] == [b"weights", b"config"]
    for file in (*files, *received.files):
        file.close()


@pytest.mark.parametrize("count", [0, 1])
def test_an_adapter_without_its_files_is_no_request(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, count: int
) -> None:
    theirs, ours = pair
    content = frame(TUNED)
    with (tmp_path / "file").open("w+b") as file:
        socket.send_fds(theirs, [content[:4]], [file.fileno()] * count)
        theirs.sendall(content[4:])
        reader = AskReader(ours)
        with pytest.raises(ProtocolError):
            read_all(reader)
        reader.close()


def test_a_request_that_is_too_large_is_refused_by_its_length(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = pair
    theirs.sendall(HEAD.pack(MAX_ASK_BYTES + 1))

    with pytest.raises(ProtocolError, match="bytes"):
        AskReader(ours).read()


def test_nothing_that_a_stranger_sends_stays_open(tmp_path: Path) -> None:
    chance = random.Random(16)  # noqa: S311 - no secret
    (tmp_path / "file").touch()
    before = psutil.Process().num_fds()
    for _ in range(effort(3_000, long=20_000)):
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(0)
        content = bytearray(frame(chance.choice([ASK, TUNED])))
        for _ in range(chance.choice([0, 0, 1, 8])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        cut = chance.choice([len(content), chance.randrange(1, len(content))])
        kinds = [
            os.open(tmp_path / "file", chance.choice([os.O_RDONLY, os.O_WRONLY, os.O_PATH])),
            os.open(tmp_path, os.O_RDONLY),
        ]
        descriptors = chance.choices(kinds, k=chance.randrange(5))
        reader = AskReader(ours)
        with theirs, ours:
            socket.send_fds(theirs, [bytes(content[:4])], descriptors)
            theirs.sendall(content[4:cut])
            for descriptor in kinds:
                os.close(descriptor)
            try:
                received = read_all(reader)
            except ProtocolError:
                received = None
            for file in received.files if received else ():
                file.close()
            reader.close()

    assert psutil.Process().num_fds() <= before  # other tests may have left some to be closed
