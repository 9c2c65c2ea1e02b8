"""A server that gives every request the same answer, with as little work as Python allows.

    python -m benchmarks.support.fixed_answers

It prints its port. What a poll of it costs is what asking costs: sockets, wake-ups and whoever
asks.
"""

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunery.logged_process import end_with_parent

ANSWER = b'HTTP/1.1 304 Not Modified\r\netag: "fixed"\r\n\r\n'
_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Server:
    """A server that can be polled."""

    url: str
    pid: int


@contextmanager
def fixed_answers() -> Iterator[Server]:
    """A server that gives every request the same answer, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.support.fixed_answers"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - one call of the system, no locks
    ) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Server(f"http://127.0.0.1:{port}", process.pid)
        finally:
            process.kill()


def serve() -> None:
    """Answer until the process is killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listener.getsockname()[1], flush=True)
    readable = select.epoll()
    readable.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in readable.poll():
            client = clients.get(descriptor)
            if client is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                readable.register(client, select.EPOLLIN)
            elif client.recv(_READ_BYTES):
                client.sendall(ANSWER)
            else:
                del clients[descriptor]
                client.close()


if __name__ == "__main__":
    sys.exit(serve())
