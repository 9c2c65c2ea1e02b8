"""Ends work that nobody waits for any more, and answers that would not end by themselves."""

import asyncio
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""Status in the log of a request whose client left before the answer. Nobody receives it."""


_END_ANSWER = "end_answer"
"""Key in the state of a request whose answer waits for changes: a function that ends it."""
_HAS_STOPPED = "has_stopped"
"""Key that is there once the service stops."""


def end_with_service(state: MutableMapping[str, Any], end: Callable[[], object]) -> None:
    """Have the answer to a request ended when the service stops, or now if it has.

    Args:
        state: that of the request.
        end: ends the answer.
    """
    state[_END_ANSWER] = end
    if _HAS_STOPPED in state:  # after the request had begun, and before it came here
        end()


def end_answer(state: MutableMapping[str, Any]) -> None:
    """Tell a request that the service stops."""
    state[_HAS_STOPPED] = True
    if end := state.get(_END_ANSWER):
        end()


class ClientLeftError(Exception):
    """The client has closed its connection."""


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a request whose body has been read. It is cancelled if the client leaves.

    Raises:
        ClientLeftError: the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_wait_for_end(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait_for_end(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
