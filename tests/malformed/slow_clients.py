"""Clients that send a request one byte at a time, as many as one process can be."""

import selectors
import socket
import time
from contextlib import ExitStack
from itertools import cycle
from urllib.parse import urlsplit

BEGINNINGS = (
    b"GET /",
    b"GET /v1/files HTTP/1.1\r\na: ",
    (
        b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=X\r\n"
        b"content-length: 1000000\r\n\r\n"
    ),
    (
        b"POST /v1/uploads HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"content-length: 10000\r\n\r\n"
    ),
)
PAUSE_S = 0.5


def outlast(url: str, count: int, *, patience_s: float) -> list[float]:
    """Send a byte over each of `count` connections twice a second until the service closes them.

    Returns:
        The time after which each connection was closed, in seconds. A connection that is still
        open after `patience_s` counts as infinity.
    """
    parts = urlsplit(url)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        opened_s: dict[socket.socket, float] = {}
        for _, beginning in zip(range(count), cycle(BEGINNINGS), strict=False):
            connection = socket.create_connection((parts.hostname, parts.port), patience_s)
            stack.enter_context(connection)
            connection.sendall(beginning)
            opened_s[connection] = time.monotonic()
            selector.register(connection, selectors.EVENT_READ)
        lasted_s: list[float] = []
        deadline = time.monotonic() + patience_s
        while opened_s and time.monotonic() < deadline:
            for key, _ in selector.select(PAUSE_S):  # an answer means that it was refused
                _close(selector, key.fileobj, opened_s, lasted_s)
            for connection in list(opened_s):
                try:
                    connection.send(b"a")
                except ConnectionError:
                    _close(selector, connection, opened_s, lasted_s)
        return lasted_s + [float("inf")] * len(opened_s)


def _close(
    selector: selectors.BaseSelector,
    connection: "socket.socket",
    opened_s: dict[socket.socket, float],
    lasted_s: list[float],
) -> None:
    selector.unregister(connection)
    lasted_s.append(time.monotonic() - opened_s.pop(connection))
