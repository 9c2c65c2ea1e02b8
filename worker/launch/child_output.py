"""Reads what a training child writes: its events line by line, and the end of its log.

The child may be hostile. Nothing is read ahead of the event that is being handled, so the kernel
makes a child wait that writes too fast, and memory is bounded. Reading ends with the child, even if
another process keeps its pipes open.
"""

import math
import os
import select
import time
from collections.abc import Callable, Iterator

from app.core.job.child.child_text import clean
from app.core.job.child.training_events import ProtocolError

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 8 * 1024
"""Number of bytes that are kept of a child's standard error."""

MAX_LINE_BYTES = 512 * 1024
"""Longest event in bytes. The largest that a child may write has a report on its data, with 40
warnings, and 50 problems of a dataset."""

EXIT_GRACE_S = 10.0
"""How long a child may take to exit once it has closed its output, in seconds."""

CHECK_INTERVAL_S = 0.2
"""Interval at which to check whether a silent child has died, in seconds."""

_CHUNK_BYTES = 64 * 1024
_LEFT_BYTES = 2 * 1024 * 1024
"""Number of bytes that are read once the child is dead: more than it can have left in two pipes.
Whatever it has started may go on writing."""


class ChildOutput:
    """The two pipes that a child writes to.

    Args:
        events: descriptor to read its standard output from.
        log: descriptor to read its standard error from.
        is_dead: whether the child has ended.
    """

    def __init__(self, events: int, log: int, is_dead: Callable[[], bool]) -> None:
        self._events = events
        self._is_dead = is_dead
        self._open = {events, log}
        self._readable = select.poll()
        for pipe in self._open:
            # The child can open the reading end of its pipes, too, and take what poll has seen.
            os.set_blocking(pipe, False)
            self._readable.register(pipe, select.POLLIN)
        self._unfinished_line = b""
        self._log_end = b""

    def lines(self) -> Iterator[bytes]:
        """Yield every line of the events, until the child has ended or closes its output for good.

        Raises:
            ProtocolError: a line is too long.
        """
        left_bytes, deadline_s = _LEFT_BYTES, math.inf
        while self._open and left_bytes > 0 and time.monotonic() < deadline_s:
            is_dead = self._is_dead()  # asked first: whatever it has written is in the pipes by now
            chunks = self._read(within_s=0 if is_dead else CHECK_INTERVAL_S)
            for pipe, chunk in chunks:
                if pipe == self._events:
                    yield from self._finish_lines(chunk)
                else:
                    self._log_end = (self._log_end + chunk)[-LOG_TAIL_BYTES:]
            if is_dead and not chunks:
                return
            if is_dead:
                left_bytes -= sum(len(chunk) for _, chunk in chunks)
            if self._events not in self._open:
                deadline_s = min(deadline_s, time.monotonic() + EXIT_GRACE_S)

    @property
    def log_tail(self) -> str:
        """The last lines of the child's standard error."""
        lines = self._log_end.decode("utf-8", "replace").splitlines()
        return clean("\n".join(lines[-LOG_TAIL_LINES:]).strip(), limit=LOG_TAIL_BYTES)

    def _read(self, *, within_s: float) -> list[tuple[int, bytes]]:
        """Read a chunk of each pipe that has one. Pipes that nobody holds open are forgotten."""
        chunks: list[tuple[int, bytes]] = []
        for pipe, _ in self._readable.poll(1000 * within_s):
            try:
                chunk = os.read(pipe, _CHUNK_BYTES)
            except BlockingIOError:
                continue
            if chunk:
                chunks.append((pipe, chunk))
            else:
                self._readable.unregister(pipe)
                self._open.discard(pipe)
        return chunks

    def _finish_lines(self, chunk: bytes) -> Iterator[bytes]:
        lines = (self._unfinished_line + chunk).split(b"\n")
        for number, line in enumerate(lines, start=1):
            if len(line) > MAX_LINE_BYTES:
                raise ProtocolError(f"It wrote a line of more than {MAX_LINE_BYTES:,} bytes.")
            if number < len(lines):
                yield line
        self._unfinished_line = lines[-1]
