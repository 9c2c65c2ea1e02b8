"""Finds the addresses of a host within a time limit, which the system's resolver does not have."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import BoundedSemaphore, Thread

from app.core.clock import steady_s
from app.webhooks.targets import Address

_MAX_LOOKUPS = 32
"""Maximum number of lookups at once: several for each thread that sends, as a lookup that takes too
long cannot be stopped and goes on after its limit."""

Resolve = Callable[[str, int], Sequence[Address]]
"""Finds every address of a host."""


def resolve(host: str, port: int) -> list[Address]:
    """Every address that the system finds for a host; none if it finds none."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(address[0]) for *_, address in found]


class Resolver:
    """Looks hosts up in threads of their own, which do not keep the process from ending."""

    def __init__(self, resolve: Resolve, *, max_lookups: int = _MAX_LOOKUPS) -> None:
        self._resolve = resolve
        self._free = BoundedSemaphore(max_lookups)

    def look_up(self, host: str, port: int, *, within_s: float) -> Sequence[Address]:
        """Every address of a host.

        Raises:
            TimeoutError: the name servers did not answer in time, or too many lookups still wait
                for theirs.
        """
        ends_at_s = steady_s() + within_s
        if not self._free.acquire(timeout=within_s):
            raise TimeoutError
        found = Future[Sequence[Address]]()
        Thread(target=self._run, args=(host, port, found), daemon=True).start()
        return found.result(ends_at_s - steady_s())

    def _run(self, host: str, port: int, found: Future[Sequence[Address]]) -> None:
        try:
            found.set_result(self._resolve(host, port))
        except Exception as error:  # raised again in the thread that waits
            found.set_exception(error)
        finally:
            self._free.release()
