"""Where the sampler's socket is, in a form that the system takes."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.core.sampling.messages import SOCKET_NAME


@contextmanager
def socket_path(directory: Path) -> Generator[str]:
    """Path of the socket in a directory, to connect or bind to while the block runs.

    It is short, however long the path of the directory is: the system takes 107 bytes.

    Raises:
        OSError: there is no such directory.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
