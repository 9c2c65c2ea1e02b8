"""A proxy in front of an S3 server that does to chosen requests what networks and servers do.

In a test: `with FaultyProxy(port) as proxy: proxy.choose = lambda request: Fault.RESET`. As a
program, with faults at random: `python -m tests.stores.faulty_proxy PORT TARGET_PORT RATE SEED`.
"""

import asyncio
import contextlib
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

_CHUNK = 64 * 1024
_SLOW_CHUNK = 1024
_SETTLING_S = 0.05
_NO_BODY = {"204", "304"}
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 46\r\n\r\n"
    b"<Error><Code>SlowDown</Code></Error>          "
)


class Fault(Enum):
    BUSY = auto()
    """Answers 503 and forwards nothing."""
    RESET = auto()
    """Closes the connection at once and forwards nothing."""
    LOST_ANSWER = auto()
    """Forwards the request, and closes the connection instead of passing the answer on."""
    TORN_REQUEST = auto()
    """Forwards half of the request's body, and then closes both connections."""
    TORN_ANSWER = auto()
    """Passes half of the answer's body on, and then closes the connection."""
    STALL = auto()
    """Neither forwards nor answers, and keeps the connection open."""
    SLOW = auto()
    """Passes the answer on at some 100 KiB a second."""
    CORRUPT = auto()
    """Flips one bit in the middle of the answer's body."""


PASSING = (Fault.BUSY, Fault.RESET, Fault.LOST_ANSWER, Fault.TORN_REQUEST, Fault.TORN_ANSWER)
"""Faults after which the same request may succeed at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that has reached the proxy."""

    number: int
    """The first is 1."""
    method: str
    target: str
    """Path and query."""


Choose = Callable[[Seen], Fault | None]


class FaultyProxy:
    """Runs in a thread of its own.

    Attributes:
        choose: returns what is done to a request, or None to pass it on. It may be replaced at any
            time, and may block: its request then waits.
        requests: what was asked for so far.
    """

    def __init__(self, target_port: int, *, port: int = 0) -> None:
        self.choose: Choose = lambda _request: None
        self.requests: list[Seen] = []
        self._target_port = target_port
        self._asked_port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listening = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self._asked_port, limit=_CHUNK)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        for one in list(self._open):
            one.transport.abort()
        await asyncio.sleep(_SETTLING_S)  # most tasks end by themselves now
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()
        await asyncio.sleep(_SETTLING_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self._open.add(writer)
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._open.add(upstream)
            while await self._pass_on(reader, writer, answers, upstream):
                pass
        for one in (writer, upstream):
            if one is not None:
                one.transport.abort()
                self._open.discard(one)

    async def _pass_on(  # noqa: C901, PLR0911 - one line a fault
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """Pass one request and its answer on. Returns whether the connection can be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split("\r\n")[0].split(" ", 2)
        seen = Seen(len(self.requests) + 1, method, target)
        self.requests.append(seen)
        fault = await asyncio.to_thread(self.choose, seen)
        if fault is Fault.RESET:
            return False
        if fault is Fault.STALL:
            await asyncio.sleep(3600)
        if fault is Fault.BUSY:
            await _copy(reader, None, _length(head))
            writer.write(_BUSY)
            await writer.drain()
            return True
        length = _length(head)
        upstream.write(head)
        if fault is Fault.TORN_REQUEST:
            await _copy(reader, upstream, length // 2)
            return False
        await _copy(reader, upstream, length)
        answer = await answers.readuntil(b"\r\n\r\n")
        if fault is Fault.LOST_ANSWER:
            return False
        writer.write(answer)
        has_body = method != "HEAD" and answer.split(b" ")[1].decode() not in _NO_BODY
        if not has_body:
            await writer.drain()
            return True
        if b"transfer-encoding: chunked" in answer.lower():
            await _copy_chunks(answers, writer)
            return fault is not Fault.TORN_ANSWER
        size = _length(answer)
        if fault is Fault.TORN_ANSWER:
            await _copy(answers, writer, size // 2)
            return False
        await _copy(answers, writer, size, fault)
        return True


def _length(head: bytes) -> int:
    for line in head.decode("latin-1").split("\r\n"):
        name, _, text = line.partition(":")
        if name.lower() == "content-length":
            return int(text)
    return 0


async def _copy(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter | None,
    size: int,
    fault: Fault | None = None,
) -> None:
    flip_at = size // 2 if fault is Fault.CORRUPT else -1
    done = 0
    while done < size:
        most = _SLOW_CHUNK if fault is Fault.SLOW else _CHUNK
        chunk = bytearray(await source.read(min(most, size - done)))
        if not chunk:
            raise ConnectionResetError
        if done <= flip_at < done + len(chunk):
            chunk[flip_at - done] ^= 1
        done += len(chunk)
        if target is not None:
            target.write(chunk)
            await target.drain()
        if fault is Fault.SLOW:
            await asyncio.sleep(0.01)


async def _copy_chunks(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while True:
        line = await source.readline()
        size = int(line.split(b";")[0], 16)
        target.write(line)
        await _copy(source, target, size + 2)
        if size == 0:
            return


def main() -> None:
    port, target_port, rate, seed = sys.argv[1:]
    dice = random.Random(int(seed))  # noqa: S311
    with FaultyProxy(int(target_port), port=int(port)) as proxy:
        proxy.choose = lambda _seen: (
            dice.choice([*PASSING, Fault.SLOW]) if dice.random() < float(rate) else None
        )
        threading.Event().wait()


if __name__ == "__main__":
    main()
