"""The socket that the API connects to, which no other user may use."""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.core.sampling.messages import SOCKET_NAME
from app.core.sampling.socket_path import socket_path

_BACKLOG = 1024
_SO_THAT_ONLY_ITS_OWNER_CONNECTS = 0o177


@contextmanager
def listening_in(directory: Path) -> Generator[socket.socket]:
    """Listen in a directory, which is made, while the block runs. Only one process may do so.

    Raises:
        OSError: it could not be done.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)  # of a process that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _bind(listener, directory)
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _bind(listener: socket.socket, directory: Path) -> None:
    umask = os.umask(_SO_THAT_ONLY_ITS_OWNER_CONNECTS)
    try:
        with socket_path(directory) as path:
            listener.bind(path)
    finally:
        os.umask(umask)
