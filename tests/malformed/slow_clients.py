"""Clients that send a request one byte at a time, as many as one process can be."""

import selectors
import socket
import time
from contextlib import ExitStack
from itertools import cycle
from typing import cast
from urllib.parse import urlsplit

BEGINNINGS = (
    b"GET /",
    b"GET /v1/files HTTP/1.1\r\na: ",
    (
        b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000000\r\n"
        b"content-type: multipart/form-data; boundary=X\r\n\r\n"
    ),
    (
        b"POST /v1/uploads HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"content-length: 10000\r\n\r\n"
    ),
)
SLICES = 100
PAUSE_S = 0.02
"""Pause between two slices of the connections. Each connection sends a byte every two seconds."""


def outlast(url: str, count: int, *, patience_s: float) -> list[float]:
    """Send single bytes over `count` connections until the service closes them.

    Returns:
        The time after which each connection was closed, in seconds. A connection that is still
        open after `patience_s` counts as infinity.
    """
    parts = urlsplit(url)
    opened_s: dict[socket.socket, float] = {}
    lasted_s: list[float] = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:

        def note_end(connection: socket.socket) -> None:
            selector.unregister(connection)
            lasted_s.append(time.monotonic() - opened_s.pop(connection))

        for _, beginning in zip(range(count), cycle(BEGINNINGS), strict=False):
            connection = socket.create_connection((parts.hostname, parts.port), patience_s)
            stack.enter_context(connection)
            connection.sendall(beginning)
            opened_s[connection] = time.monotonic()
            selector.register(connection, selectors.EVENT_READ)
        deadline = time.monotonic() + patience_s
        turns = cycle(range(SLICES))
        while opened_s and time.monotonic() < deadline:
            for key, _ in selector.select(PAUSE_S):  # an answer means that it was refused
                note_end(cast("socket.socket", key.fileobj))
            for connection in list(opened_s)[next(turns) :: SLICES]:
                try:
                    connection.send(b"a")
                except ConnectionError:
                    note_end(connection)
    return lasted_s + [float("inf")] * len(opened_s)
