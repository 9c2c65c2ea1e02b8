"""Reads server-sent events from an answer of the service."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import httpx2


class ServerEvent(NamedTuple):
    name: str
    """Empty if the service gave none."""
    data: str
    cursor: str
    """Id of the last event that has one. Empty if none had one so far."""


def read_events(response: "httpx2.Response") -> Iterator[ServerEvent]:
    """Yield the events with data. Comments and unknown fields are passed over."""
    fields: dict[str, str] = {}
    cursor = ""
    for line in _lines(response.iter_bytes()):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            cursor = value
        elif name == "data" and "data" in fields:
            fields["data"] += f"\n{value}"
        elif name in {"event", "data"}:
            fields[name] = value
        elif not line:
            if "data" in fields:
                yield ServerEvent(fields.get("event", ""), fields["data"], cursor)
            fields = {}


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode()
