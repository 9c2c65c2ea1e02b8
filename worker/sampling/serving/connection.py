"""One connection of the API: takes one request, and sends its answers without waiting."""

import math
import socket
import threading
from collections.abc import Callable, Sequence

from app.core.clock import steady_s
from app.core.sampling.messages import Alive
from worker.sampling.serving.requests import Request, Told
from worker.sampling.serving.wire import AskReader

_ALIVE = b"%b\n" % Alive().model_dump_json().encode()

MAX_UNSENT_BYTES = 8 * 1024**2
"""Answers that a client may leave unread before it counts as gone."""


class Connection:
    """A connection. It is the `Outlet` of its request.

    Attributes:
        request: what was asked; None until it has arrived.
        reader: reads the request.
        deadline_s: time of the steady clock by which the client must have sent its request, or
            taken all answers. It is infinite while they are made.

    Args:
        wake: called when there is something to send, from any thread.
        receive_s: time in which the request must arrive, in seconds.
        take_s: time in which the client must take all answers once they are complete, in seconds.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        wake: Callable[["Connection"], None],
        receive_s: float,
        take_s: float,
    ) -> None:
        self.socket = connection
        self.reader = AskReader(connection)
        self.deadline_s = steady_s() + receive_s
        self._take_s = take_s
        self.request: Request | None = None
        self._wake = wake
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._is_complete = False

    def begin(self, request: Request) -> None:
        """Note what was asked. Answering it may take any time."""
        self.request = request
        self.deadline_s = math.inf

    def send(self, answers: Sequence[Told], *, is_last: bool) -> None:
        lines = b"".join(b"%b\n" % answer.model_dump_json().encode() for answer in answers)
        with self._lock:
            self._unsent += lines
            self._is_complete = self._is_complete or is_last
        self._wake(self)

    def send_alive(self) -> None:
        """Tell a client that waits for its next answer that its request is not forgotten."""
        with self._lock:
            if self.request is None or self._unsent or self._is_complete:
                return
            self._unsent += _ALIVE
        self._wake(self)

    def flush(self) -> bool:
        """Send what the client takes now. Returns whether more is left.

        Raises:
            OSError: the client has left, or leaves too much unread.
        """
        with self._lock:
            if self._unsent:
                try:
                    sent = self.socket.send(self._unsent)
                except BlockingIOError:
                    sent = 0
                del self._unsent[:sent]
            if len(self._unsent) > MAX_UNSENT_BYTES:
                raise OSError("the client does not read its answers")
            if self._unsent and self._is_complete and not self.is_ignored:
                self.deadline_s = steady_s() + self._take_s
            return bool(self._unsent)

    @property
    def is_ignored(self) -> bool:
        """Whether its answers are complete, and its client did not take all of them at once."""
        return self.request is not None and self.deadline_s < math.inf

    @property
    def is_done(self) -> bool:
        """Whether the last answer was sent."""
        with self._lock:
            return self._is_complete and not self._unsent

    def close(self) -> None:
        self.reader.close()
        self.socket.close()
