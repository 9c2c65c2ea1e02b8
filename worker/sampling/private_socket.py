"""The socket that the API connects to, which no other user may use."""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.core.sampling.messages import SOCKET_NAME

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
    """Bind by a path that the system takes, however long that of the directory is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    umask = os.umask(_SO_THAT_ONLY_ITS_OWNER_CONNECTS)
    try:
        listener.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
    finally:
        os.umask(umask)
        os.close(descriptor)
