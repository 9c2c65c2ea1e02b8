"""Requests to S3: which are repeated, for how long, and what their failures mean."""

import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from app.core.errors import StoreAwayError

T = TypeVar("T")

PATIENCE_S = 20.0
"""Time in which a request is repeated, in seconds. A request that is under way then may still take
as long as a server may be silent. Callers repeat what they do anyway, as with the database."""

SILENCE_S = 30.0
"""Time in which a server must take a request or send more of its answer, in seconds."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0
_MAX_REASON = 200
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z]{1,60})\s*</Code>")
_NOT_FOUND = 404
_NO_BUCKET = "NoSuchBucket"
_WORTH_REPEATING = {408, 409, 425, 429}
"""Statuses from 400 to 499 after which the same request may succeed."""
_REFUSED = (PermissionDeniedError, UnauthenticatedError)
_ANSWERS = (AlreadyExistsError, PreconditionError, NotSupportedError)
"""What a server answers to a condition, which is for the caller."""


class AbsentError(Exception):
    """The store has said that no object has this key, and not just that something was not found."""


class Calls:
    """Repeats requests that may succeed the next time, with pauses that grow.

    Args:
        where: address of the store, for messages.
        patience_s: as `PATIENCE_S`.
    """

    def __init__(self, where: str, patience_s: float) -> None:
        self._where = where
        self._patience_s = patience_s

    def run(self, act: Callable[[], T]) -> T:
        """The result of `act`, which is one request, or several that can be repeated together.

        Raises:
            AbsentError: no object has the key.
            StoreAwayError: the store does not answer, or refuses.
        """
        began_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return act()
            except _ANSWERS:
                raise
            except (BaseError, FileNotFoundError, ConnectionError, TimeoutError) as error:
                if is_absent(error):
                    raise AbsentError from error
                left_s = began_s + self._patience_s - time.monotonic()
                if left_s <= 0 or not _may_pass(error):
                    raise self.away(error) from error
                time.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))  # noqa: S311 - no secret
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def away(self, error: Exception) -> StoreAwayError:
        """The error that says why the store cannot be used."""
        advice = "Is it running, and does this machine reach it?"
        if isinstance(error, _REFUSED):
            advice = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they allow."
        elif code_of(error) == _NO_BUCKET:
            advice = "Create the bucket, or correct TUNERY_STORE_URL."
        return StoreAwayError(
            for_operator=f"The blob store {self._where} cannot be used: {reason_of(error)}. "
            f"{advice} docs/stores.md says more."
        )


def is_absent(error: Exception) -> bool:
    """Whether a server of S3 has answered that the key does not exist.

    Any other 404, such as that of a missing bucket or of a proxy, says nothing about the object.
    """
    return isinstance(error, FileNotFoundError) and code_of(error) == "NoSuchKey"


def code_of(error: Exception) -> str | None:
    """Code of the error in S3's own words, such as `NoSuchKey`."""
    match = _CODE.search(str(error))
    return match and match[1]


def status_of(error: Exception) -> int | None:
    """Status of the HTTP answer."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def reason_of(error: Exception) -> str:
    """Why a request has failed, in a few words without signatures."""
    status, code = status_of(error), code_of(error)
    if status is not None:
        return f"it answered {status}{f' {code}' if code else ''}"
    first = str(error).partition("\n")[0]
    return first.rpartition(" - ")[2][:_MAX_REASON] or type(error).__name__


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _REFUSED):
        return False
    status = status_of(error)
    if status == _NOT_FOUND:  # of a proxy, say, or the upload was forgotten in a restart
        return code_of(error) != _NO_BUCKET
    return status is None or status >= 500 or status in _WORTH_REPEATING  # noqa: PLR2004
