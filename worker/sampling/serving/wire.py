"""Reads one request from a connection: its length with the descriptors, then its JSON.

The client is the API alone, but nothing here relies on that: sizes are bounded, and descriptors
that are not regular files are refused.
"""

import fcntl
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydantic import ValidationError

from app.core.sampling.messages import HEAD, MAX_ASK_BYTES, Ask

_MAX_FILES = 2
_CHUNK_BYTES = 256 * 1024


class ProtocolError(Exception):
    """What came is no request. The message says why, for the log."""


@dataclass(frozen=True, slots=True)
class Received:
    """A complete request."""

    ask: Ask | None
    """None if the client only wants to know whether somebody is there."""
    files: Sequence[BinaryIO]


class AskReader:
    """Reads a request piece by piece, from a connection that does not block."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._head = b""
        self._body = bytearray()
        self._descriptors: list[int] = []

    def read(self) -> Received | None:
        """Read what there is. Returns the request once it is complete.

        Raises:
            ProtocolError: it is none, or the client has left.
        """
        try:
            if len(self._head) < HEAD.size:
                self._read_head()
            else:
                self._read_body()
        except BlockingIOError:
            return None
        if len(self._head) < HEAD.size or len(self._body) < self._size:
            return None
        return self._finish()

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    @property
    def _size(self) -> int:
        return int(HEAD.unpack(self._head)[0])

    def _read_head(self) -> None:
        part, descriptors, _, _ = socket.recv_fds(
            self._connection,
            HEAD.size - len(self._head),
            _MAX_FILES,
            socket.MSG_CMSG_CLOEXEC,
        )
        self._descriptors += descriptors
        if not part:
            raise ProtocolError("the client left before it said anything")
        self._head += part
        if len(self._descriptors) > _MAX_FILES:
            raise ProtocolError("too many descriptors")
        if len(self._head) == HEAD.size and self._size > MAX_ASK_BYTES:
            raise ProtocolError(f"a request of {self._size:,} bytes")

    def _read_body(self) -> None:
        part = self._connection.recv(min(_CHUNK_BYTES, self._size - len(self._body)))
        if not part:
            raise ProtocolError("the client left in the middle of its request")
        self._body += part

    def _finish(self) -> Received:
        if not self._size:
            return Received(None, ())
        try:
            ask = Ask.model_validate_json(bytes(self._body))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise ProtocolError(f"an invalid request: {first['loc']}: {first['msg']}") from None
        if len(self._descriptors) != (2 if ask.adapter else 0):
            raise ProtocolError(f"{len(self._descriptors)} descriptors")
        if not all(map(_is_readable_file, self._descriptors)):
            raise ProtocolError("a descriptor that is no file to read")
        files = [os.fdopen(descriptor, "rb") for descriptor in self._descriptors]
        self._descriptors.clear()
        for file in files:
            file.seek(0)  # whoever has opened it shares the position
        return Received(ask, files)


def _is_readable_file(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    is_opened_to_read = not flags & (os.O_WRONLY | os.O_PATH)
    return is_opened_to_read and stat.S_ISREG(os.fstat(descriptor).st_mode)
