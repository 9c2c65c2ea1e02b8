"""Waiting for what a worker makes when somebody asks for it: an export or a report."""

import time
from collections.abc import Callable
from contextlib import suppress

from tunery.client.screen.terminal import percent
from tunery.client.service.api import AwayError, Json

_PAUSE_S = 1.0
"""Pause before a service is asked again that has become busy or does not answer, in seconds."""
_MOST_PAUSES = 60
"""Pauses in a row after which the service is given up."""


def wait_until_made(first: Json, ask: Callable[[], Json], doing: str) -> Json:
    """Ask until it is made, also if the service is away in between. Returns the last answer.

    Args:
        first: an answer of the service: `progress` from 0 to 1, and `retry_after` in seconds, which
            is None once there is nothing to wait for.
        ask: gets the next answer.
        doing: what is shown beside the progress.

    Raises:
        AwayError: the service was away for a minute.
    """
    answer = first
    with percent(doing) as show:
        while answer["retry_after"] is not None:
            show(answer["progress"])
            time.sleep(answer["retry_after"])
            answer = _ask_patiently(ask)
    return answer


def _ask_patiently(ask: Callable[[], Json]) -> Json:
    for _ in range(_MOST_PAUSES):
        with suppress(AwayError):
            return ask()
        time.sleep(_PAUSE_S)
    return ask()
