"""Ids with the kind of object as a prefix, which sort by creation time: `ftjob-01k9...`.

The prefix is followed by a ULID: 48 bits of Unix time in milliseconds and 80 random bits, in
lower-case Crockford base 32. The ids of a process always increase, even within a millisecond or
when the clock is set back, so rows ordered by id are in the order of their creation.

Source: the ULID specification, https://github.com/ulid/spec, "Monotonicity".
"""

import secrets
import threading
import time
from enum import StrEnum

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 80
_LENGTH = 26
"""Number of characters after the prefix: 128 bits, with five bits per character."""


class IdPrefix(StrEnum):
    FILE = "file-"
    UPLOAD = "upload_"
    UPLOAD_PART = "part_"
    JOB = "ftjob-"
    SWEEP = "ftsweep-"
    EVENT = "ftevent-"
    CHECKPOINT = "ftckpt_"
    TASK = "task_"
    REQUEST = "req_"
    WORKER = "worker-"
    STORE = "store-"
    KEY = "key_"
    AUDIT_EVENT = "audit_"
    PROJECT = "proj_"
    WEBHOOK_ENDPOINT = "whep_"
    WEBHOOK_EVENT = "evt_"
    CHAT_COMPLETION = "chatcmpl-"
    COMPLETION = "cmpl-"
    RESPONSE = "resp_"
    MESSAGE = "msg_"
    TOOL_CALL = "call_"


_lock = threading.Lock()
_last_value = 0


def new_id(prefix: IdPrefix) -> str:
    """Create an id that is greater than every earlier id of this process with this prefix."""
    global _last_value  # noqa: PLW0603 - the process-wide high-water mark is the point
    now = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _lock:
        same_or_earlier = now >> _RANDOM_BITS <= _last_value >> _RANDOM_BITS
        _last_value = value = _last_value + 1 if same_or_earlier else now
    return prefix + _encode(value)


def _encode(value: int) -> str:
    return "".join(_ALPHABET[value >> (5 * place) & 31] for place in reversed(range(_LENGTH)))
