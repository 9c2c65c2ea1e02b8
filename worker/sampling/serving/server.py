"""Takes connections and requests, sends answers, and listens to the keeper: one thread, no wait."""

import errno
import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from app.core.clock import steady_s
from app.core.sampling.messages import ALIVE_INTERVAL_S
from worker.sampling.pulse import Pulse
from worker.sampling.serving.connection import Connection
from worker.sampling.serving.desk import MAX_ANSWERS, Desk
from worker.sampling.serving.options import TRAINS
from worker.sampling.serving.requests import Request
from worker.sampling.serving.wire import ProtocolError, Received

logger = logging.getLogger(__name__)

RECEIVE_S = 10.0
"""Default time in which a request must have arrived, in seconds."""

TAKE_S = 60.0
"""Default time in which a client must have taken all answers once they are complete, in seconds."""

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_MORE_CONNECTIONS = 32
"""Connections beyond those of requests that wait or are answered: for what is still arriving, and
for refusals. Further ones wait in the kernel."""


class Server:
    """Serves connections until the keeper is gone.

    Args:
        listener: socket that the API connects to.
        control: descriptor from which the keeper is heard.
        desk: takes the requests.
        queue: maximum number of requests that wait.
        pulses: those of the threads that prepare requests and decode.
        say_alive: called at intervals while none of them hangs.
        alive_s: length of these intervals, in seconds.
        receive_s: time in which a request must have arrived, in seconds.
        take_s: time in which a client must have taken its answers once they are complete, in
            seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        control: int,
        desk: Desk,
        *,
        queue: int,
        pulses: Sequence[Pulse],
        say_alive: Callable[[], None],
        alive_s: float = ALIVE_INTERVAL_S,
        receive_s: float = RECEIVE_S,
        take_s: float = TAKE_S,
    ) -> None:
        self._listener = listener
        self._control = control
        self._desk = desk
        self._make_connection = partial(
            Connection, wake=self._wake, receive_s=receive_s, take_s=take_s
        )
        self._pulses = pulses
        self._say_alive = say_alive
        self._alive_s = alive_s
        self._says_alive_at_s = 0.0
        self._limit = MAX_ANSWERS + queue + _MORE_CONNECTIONS
        self._connections: set[Connection] = set()
        self._to_flush = deque[Connection]()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._is_over = False
        self._is_accepting = False
        self._has_descriptors = True

    def run(self) -> None:
        self._listener.settimeout(0)
        os.set_blocking(self._control, False)
        self._selector.register(self._control, selectors.EVENT_READ, self._hear_keeper)
        self._selector.register(self._woken, selectors.EVENT_READ, self._flush)
        while not self._is_over:
            self._drop_one_if_full()
            self._accept_if_room()
            for key, _ in self._selector.select(self._time_left_s()):
                key.data()
            self._drop_late()
            self._show_life()

    def _drop_one_if_full(self) -> None:
        """Close the connection whose client has not taken complete answers for longest.

        Clients that read nothing would otherwise keep all others out.
        """
        if len(self._connections) < self._limit:
            return
        ignored = [each for each in self._connections if each.is_ignored]
        if ignored:
            logger.warning("a connection is closed: its answers are not taken, and others wait")
            self._close(min(ignored, key=lambda each: each.deadline_s))

    def _accept_if_room(self) -> None:
        """Listen for connections only while there may be more."""
        has_room = self._has_descriptors and len(self._connections) < self._limit
        if has_room and not self._is_accepting:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self._is_accepting and not has_room:
            self._selector.unregister(self._listener)
        self._is_accepting = has_room

    def _accept(self) -> None:
        """Accept all connections that wait, while there may be more."""
        while len(self._connections) < self._limit:
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:  # there are no others, or this one has left again
                self._has_descriptors = error.errno not in _OUT_OF_DESCRIPTORS
                return
            accepted.settimeout(0)
            connection = self._make_connection(accepted)
            self._connections.add(connection)
            self._selector.register(
                accepted, selectors.EVENT_READ, partial(self._serve, connection)
            )

    def _serve(self, connection: Connection) -> None:
        """Read from a connection, or send to it."""
        try:
            if connection.request is not None:
                self._notice_leaving(connection)
            else:
                received = connection.reader.read()
                if received is not None:
                    self._submit(connection, received)
        except ProtocolError as error:
            logger.warning("a connection is closed: %s", error)
            self._close(connection)
        except OSError:
            self._close(connection)

    def _submit(self, connection: Connection, received: Received) -> None:
        if received.ask is None:
            if self._is_steady:
                connection.socket.send(b"\n")
            self._close(connection)
            return
        request = Request(received.ask, received.files, connection)
        connection.begin(request)
        self._desk.submit(request)

    def _notice_leaving(self, connection: Connection) -> None:
        """Close the connection of a client that has closed it, or that breaks the protocol."""
        self._flush_one(connection)
        try:
            connection.socket.recv(1)
        except BlockingIOError:
            return  # it only takes answers again
        self._close(connection)

    def _hear_keeper(self) -> None:
        said = os.read(self._control, 64)
        if not said:
            self._is_over = True
            return
        self._desk.set_training(said[-1:] == TRAINS)

    def _wake(self, connection: Connection) -> None:
        self._to_flush.append(connection)
        os.eventfd_write(self._woken, 1)

    def _flush(self) -> None:
        os.eventfd_read(self._woken)
        while self._to_flush:
            connection = self._to_flush.popleft()
            if connection in self._connections:
                try:
                    self._flush_one(connection)
                except OSError:
                    self._close(connection)

    def _flush_one(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        events = selectors.EVENT_READ
        if connection.flush():
            events |= selectors.EVENT_WRITE
        if connection.is_done:
            self._close(connection)
        else:
            self._selector.modify(connection.socket, events, partial(self._serve, connection))

    def _close(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._selector.unregister(connection.socket)
        connection.close()
        if connection.request is not None:
            self._desk.cancel(connection.request)

    @property
    def _is_steady(self) -> bool:
        return all(pulse.is_steady for pulse in self._pulses)

    def _show_life(self) -> None:
        """Tell the keeper and all clients every few seconds that nothing hangs."""
        now_s = time.monotonic()
        if now_s < self._says_alive_at_s:
            return
        self._says_alive_at_s = now_s + self._alive_s
        self._has_descriptors = True  # perhaps again
        if self._is_steady:
            self._say_alive()
            for connection in self._connections:
                connection.send_alive()

    def _time_left_s(self) -> float:
        """Time until there is something to do, even if nobody says anything."""
        deadlines = [each.deadline_s for each in self._connections]
        left_s = self._says_alive_at_s - time.monotonic()
        return max(0.0, min([left_s, *(each - steady_s() for each in deadlines)]))

    def _drop_late(self) -> None:
        now_s = steady_s()
        for connection in [each for each in self._connections if each.deadline_s <= now_s]:
            what = "answers were not taken" if connection.is_ignored else "request has not arrived"
            logger.warning("a connection is closed: its %s in time", what)
            self._close(connection)
