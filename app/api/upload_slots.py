"""Limits what all uploads of a process take together: memory, threads and processor time."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CapacityLimiter, Semaphore, fail_after, to_thread

from app.core.errors import TooManyUploadsError
from app.services.received_files import ReceivedFile, check_table

T = TypeVar("T")

_MAX_CHECKS = 1
"""Number of threads that check files. Checking holds the interpreter's lock nearly all the time, so
a second thread would not be faster, and would delay the event loop beyond 100 ms."""

_MAX_TABLE_CHECKS = 1
"""Number of processes that check tables, each with a processor and memory of its own."""

_MAX_JOINS = 2
"""Number of threads that join the parts of uploads. A large upload takes one for half a minute, so
they are not those in which other files are checked batch by batch."""

_MAX_IMPORTS = 2
"""Number of adapters that are checked at once. Each check has a process, which may take a gigabyte
and a processor for minutes."""

_WAIT_S = 10.0
"""Time for which an upload waits for others to end before it is refused, in seconds."""


class UploadSlots:
    """Slots for the uploads that are received at the same time.

    Args:
        count: number of slots.
        wait_s: seconds after which an upload that has no slot is refused.
    """

    def __init__(self, count: int, *, wait_s: float = _WAIT_S) -> None:
        self._count = count
        self._wait_s = wait_s
        self._slots = Semaphore(count)
        self._imports = Semaphore(_MAX_IMPORTS)
        self._checks = CapacityLimiter(_MAX_CHECKS)
        self._joins = CapacityLimiter(_MAX_JOINS)
        self._table_checks = CapacityLimiter(_MAX_TABLE_CHECKS)

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[None]:
        """Hold a slot, and wait for one first if all are taken.

        Raises:
            TooManyUploadsError: no slot became free in time.
        """
        async with self._held(self._slots, f"receiving {self._count} files"):
            yield

    @asynccontextmanager
    async def take_import(self) -> AsyncGenerator[None]:
        """Hold one of the slots for checks of adapters that are imported.

        Raises:
            TooManyUploadsError: no slot became free in time.
        """
        async with self._held(self._imports, f"checking {_MAX_IMPORTS} adapters"):
            yield

    @asynccontextmanager
    async def _held(self, slots: Semaphore, doing: str) -> AsyncGenerator[None]:
        try:
            with fail_after(self._wait_s):
                await slots.acquire()
        except TimeoutError as error:
            raise TooManyUploadsError(
                f"The service is {doing}, as many as it can at once. Nothing was done; send the "
                "request again in a moment.",
            ) from error
        try:
            yield
        finally:
            slots.release()

    async def check(self, act: Callable[..., T], *args: object) -> T:
        """Run a function that handles a batch of a file's bytes, in the thread for that."""
        return await to_thread.run_sync(act, *args, limiter=self._checks)

    async def join(self, act: Callable[..., T], *args: object) -> T:
        """Run a function that joins the parts of a whole file, in one of the threads for that."""
        return await to_thread.run_sync(act, *args, limiter=self._joins)

    async def check_table(self, received: ReceivedFile) -> ReceivedFile:
        """Check the rows of a table. Any other file has been checked already."""
        if received.unchecked_table is None:
            return received
        return await to_thread.run_sync(check_table, received, limiter=self._table_checks)
