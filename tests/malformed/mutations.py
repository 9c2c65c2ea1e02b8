"""Changes to bytes and to JSON, each chosen by a generator of random numbers that is given."""

import copy
from random import Random
from typing import Any

EVIL_BYTES = (
    *(b"\0", b"\r\n", b"\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"--X", b"\xff"),
    *(b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"\xf0\x9f\x99\x82", b"1e999", b"NaN", b"%00"),
)
EVIL_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**300, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "auto", "null", "\0", "\ud800", "\U0001f642", "a" * 5000),
    *("../../etc/passwd", "{{7*7}}", "' or 1=1--", "=1+1", "file-1", "ftjob-1", "tiny"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"a": {"a": {}}}}, [1] * 300, {"__proto__": 1}),
)


def mutate_bytes(chance: Random, content: bytes) -> bytes:
    """Change one to four places: flip, insert, delete, repeat or cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        stop = at + chance.randint(1, 40)
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at:at] = chance.choice(EVIL_BYTES) * chance.choice((1, 1, 1, 50))
            case 2:
                del changed[at:stop]
            case 3:
                changed[at:at] = changed[at:stop] * chance.choice((1, 2, 20))
            case 4:
                changed[at:stop] = chance.randbytes(stop - at)
            case _:
                del changed[max(at, len(changed) // 2) :]
    return bytes(changed)


def mutate_json(chance: Random, value: Any) -> Any:
    """A copy with one to three members replaced, removed, added or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        place = chance.choice(list(_containers(changed)))
        if isinstance(place, list):
            _mutate_list(chance, place)
        else:
            _mutate_object(chance, place)
    return changed


def _containers(value: Any) -> list[Any]:
    """All lists and objects in a value, itself included."""
    if not isinstance(value, dict | list):
        return []
    members = value.values() if isinstance(value, dict) else value
    return [value, *(inner for member in members for inner in _containers(member))]


def _mutate_list(chance: Random, items: list[Any]) -> None:
    evil = copy.deepcopy(chance.choice(EVIL_VALUES))
    items.insert(chance.randrange(len(items) + 1), evil)


def _mutate_object(chance: Random, members: dict[str, Any]) -> None:
    evil = copy.deepcopy(chance.choice(EVIL_VALUES))
    names = list(members)
    what = chance.randrange(4) if names else 3
    if what == 0:
        del members[chance.choice(names)]
    elif what == 1:
        name = chance.choice(names)
        members[name[: chance.randrange(len(name) + 1)] + "x"] = members.pop(name)
    elif what == 2:
        members[chance.choice(names)] = evil
    else:
        members[chance.choice(("", "x", "type", "n_epochs", "from", "a" * 70, "\0"))] = evil
