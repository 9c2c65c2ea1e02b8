"""A sampler without a model: it speaks the protocol, and a test decides what it answers."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from app.core.sampling.messages import (
    HEAD,
    SOCKET_NAME,
    Accepted,
    Alive,
    Ask,
    ChatPrompt,
    ChosenLogProb,
    Delta,
    Finished,
    Refused,
    TokenLogProb,
)
from app.core.sampling.socket_path import socket_path

PATIENCE_S = 20.0

Said = Alive | Accepted | Delta | Finished | Refused | bytes
"""An answer, or bytes that are sent as they are."""


@dataclass
class Asked:
    """A request that the sampler has got."""

    ask: Ask
    files: list[bytes]
    """Contents of the files whose descriptors came with it."""
    has_left: threading.Event = field(default_factory=threading.Event)
    """Set as soon as the API has closed the connection."""


Script = Callable[[Asked], Iterator[Said]]


def text_of(ask: Ask) -> str:
    """What a request says last."""
    if isinstance(ask.prompt, ChatPrompt):
        return str(ask.prompt.messages[-1]["content"])
    return ask.prompt.text


def repeat(asked: Asked) -> Iterator[Said]:
    """Answer each choice with the words of the request, one a delta. A word is a token."""
    ask = asked.ask
    words = text_of(ask).split()
    limit = ask.parameters.max_tokens or len(words)
    yield Accepted(prompt_tokens=len(words), cached_tokens=len(words) // 2)
    for choice in range(ask.choices):
        for word in words[:limit]:
            yield Delta(choice=choice, text=f"{word} ", logprobs=logprobs_of(ask, f"{word} "))
        reason = "length" if limit < len(words) else "stop"
        yield Finished(choice=choice, reason=reason, tokens=min(limit, len(words)))


def logprobs_of(ask: Ask, text: str) -> tuple[ChosenLogProb, ...]:
    """The log-probability of a token, if the request wants any, with those of others."""
    count = ask.parameters.top_logprobs
    if count is None:
        return ()
    top = tuple(
        TokenLogProb(token=f"t{rank}", logprob=-1.0 - rank, text_bytes=(116, 48 + rank))
        for rank in range(count)
    )
    return (ChosenLogProb(token=text, logprob=-0.5, text_bytes=tuple(text.encode()), top=top),)


def wait_for_leaving(asked: Asked) -> Iterator[Said]:
    """Say one word, and nothing more until the API closes the connection."""
    yield Accepted(prompt_tokens=1, cached_tokens=0)
    yield Delta(choice=0, text="Well ")
    asked.has_left.wait(PATIENCE_S)


class StandInSampler:
    """Listens in a directory, as the sampler does in `Settings.sampler_dir`.

    Attributes:
        script: what it answers to the next requests.
        asked: the requests so far.
    """

    def __init__(self, directory: Path, script: Script = repeat) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self._directory = directory
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._directory / SOCKET_NAME
        file.unlink(missing_ok=True)
        with socket_path(self._directory) as path:
            self._listener.bind(path)
        file.chmod(0o600)  # as the sampler lets no other user connect
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def die(self) -> None:
        """Close the socket and every connection, as the end of its process does."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            asked = _receive(connection)
            self.asked.append(asked)
            self._start(_notice_leaving, connection, asked)
            for said in self.script(asked):
                line = said if isinstance(said, bytes) else f"{said.model_dump_json()}\n".encode()
                connection.sendall(line)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.discard(connection)


def _receive(connection: socket.socket) -> Asked:
    head, descriptors, _, _ = socket.recv_fds(connection, HEAD.size, 2)
    (size,) = HEAD.unpack(head)
    body = bytearray()
    while len(body) < size:
        chunk = connection.recv(size - len(body))
        if not chunk:
            raise ConnectionError
        body += chunk
    files: list[bytes] = []
    for descriptor in descriptors:
        with os.fdopen(descriptor, "rb") as file:
            files.append(file.read())
    return Asked(Ask.model_validate_json(bytes(body)), files)


def _notice_leaving(connection: socket.socket, asked: Asked) -> None:
    with suppress(OSError):
        connection.recv(1)
    asked.has_left.set()
