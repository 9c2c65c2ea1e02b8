"""Ids that say what they name and sort by the time they were made: `ftjob-01k9...`.

A ULID behind a prefix: 48 bits of Unix time in milliseconds, then 80 random bits, in lower-case
Crockford base 32. Within one process ids never go backwards, not even inside one millisecond or
when the clock is set back, so a list ordered by id is in the order in which its rows were made.

Source: the ULID specification, https://github.com/ulid/spec, "Monotonicity".
"""

import secrets
import threading
import time
from enum import StrEnum

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_LENGTH = 26
"""Characters after the prefix: 128 bits, five to a character."""


class IdPrefix(StrEnum):
    FILE = "file-"
    UPLOAD = "upload_"
    UPLOAD_PART = "part_"
    JOB = "ftjob-"
    EVENT = "ftevent-"
    CHECKPOINT = "ftckpt_"
    REQUEST = "req_"
    WORKER = "worker-"


_lock = threading.Lock()
_last_value = 0


def new_id(prefix: IdPrefix) -> str:
    """A fresh id, greater than every id with this prefix that this process made before."""
    global _last_value  # noqa: PLW0603 - the process-wide high-water mark is the point
    now = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _lock:
        same_or_earlier = now >> _RANDOM_BITS <= _last_value >> _RANDOM_BITS
        _last_value = value = _last_value + 1 if same_or_earlier else now
    return prefix + _encode(value)


def _encode(value: int) -> str:
    return "".join(_ALPHABET[value >> (5 * place) & 31] for place in reversed(range(_LENGTH)))
