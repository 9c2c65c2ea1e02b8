"""A link between a machine and a server: a relay of TCP connections that can be made faulty.

It stands for the proxies, firewalls and cables in between. A connection that is closed on one side
of a faulty link stays open on the other, as it does on a network.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any, Self

_CHUNK = 64 * 1024
_WITHIN_S = 30


class Fault(Enum):
    """What a link does with connections, new and old."""

    NONE = auto()
    STALL = auto()
    """Accept everything, and pass nothing on."""
    MUTE = auto()
    """Pass on only what the server sends."""
    DEAF = auto()
    """Pass on only what the client sends: what it asks for is done, and it never hears of that."""
    RESET = auto()
    """Reset every connection."""


class Relays(threading.Thread):
    """The event loop that all links of a test share. A context manager."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        self._loop.run_forever()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WITHIN_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join()
        self._loop.close()


class Link:
    """Relays connections to a server, as well as its present fault allows.

    Args:
        target: the server: a host and a port, or the path of a Unix socket.
        host: address on which the link listens, on a free port.
    """

    def __init__(
        self, relays: Relays, target: tuple[str, int] | Path, host: str = "127.0.0.1"
    ) -> None:
        self._relays = relays
        self._target = target
        self._fault = Fault.NONE
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_server, self._to_client = asyncio.Event(), asyncio.Event()
        self.host = host
        self.connections = 0
        """Number of connections that were accepted."""
        self.port: int = relays.call(self._listen())

    def fail(self, fault: Fault) -> None:
        self._relays.call(self._set(fault, cuts=fault is Fault.RESET))

    def heal(self, *, delivers: bool) -> None:
        """Work again.

        Args:
            delivers: whether what was held back arrives now. Otherwise its connections are reset.
        """
        self._relays.call(self._set(Fault.NONE, cuts=not delivers))

    def close(self) -> None:
        self._relays.call(self._close())

    async def _listen(self) -> int:
        await self._set(Fault.NONE, cuts=False)
        self._server = await asyncio.start_server(self._serve, self.host)
        return self._server.sockets[0].getsockname()[1]

    async def _set(self, fault: Fault, *, cuts: bool) -> None:
        self._fault = fault
        if cuts:
            self._cut()
        for gate, closed_by in (
            (self._to_server, {Fault.STALL, Fault.MUTE}),
            (self._to_client, {Fault.STALL, Fault.DEAF}),
        ):
            gate.clear() if fault in closed_by else gate.set()

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the sockets of aborted connections are closed in the next round

    def _cut(self) -> None:
        for writer in self._writers:
            _reset(writer)
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._fault is Fault.RESET:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        ends = [writer]
        try:
            await self._to_server.wait()
            answers, server = await self._connect()
            self._writers.add(server)
            ends.append(server)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, server, self._to_server))
                pumps.create_task(_pump(answers, writer, self._to_client))
            for end in ends:
                end.close()
        except* (OSError, asyncio.CancelledError):  # such as by `_cut`
            for end in ends:
                _reset(end)
        finally:
            self._tasks.discard(task)
            self._writers.difference_update(ends)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)


async def _pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    while chunk := await source.read(_CHUNK):
        await gate.wait()
        target.write(chunk)
        await target.drain()
    await gate.wait()  # a faulty link hides the end of a connection, too
    if target.can_write_eof():
        target.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection without sending what is left, so that the other side sees a reset."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and raw.family != socket.AF_UNIX and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
