"""Asks the sampler whether it works, without asking a model anything."""

import socket
from pathlib import Path

from app.core.sampling.messages import HEAD
from app.core.sampling.socket_path import socket_path

_PATIENCE_S = 2.0
"""Time in which it must answer, in seconds."""


def answers(directory: Path) -> bool:
    """Whether the sampler that listens in this directory takes requests, and no thread of it hangs.

    It is asked with an empty request. Unless it hangs, it answers with an empty line.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            with socket_path(directory) as path:
                connection.connect(path)
            connection.sendall(HEAD.pack(0))
            return connection.recv(1) == b"\n"
        except OSError:
            return False
