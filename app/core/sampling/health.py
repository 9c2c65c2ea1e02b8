"""Asks the sampler whether it is there, without asking a model anything."""

import os
import socket
import struct
from pathlib import Path

from app.core.sampling.messages import SOCKET_NAME

_PATIENCE_S = 2.0
"""Time in which it must answer, in seconds."""


def answers(directory: Path) -> bool:
    """Whether the sampler that listens in this directory takes requests.

    It is asked with an empty request, to which it answers with an empty line.
    """
    try:
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
            connection.sendall(struct.pack(">I", 0))
            return connection.recv(1) == b"\n"
        except OSError:
            return False
        finally:
            os.close(descriptor)
