"""Names under which clients reach the API, and what may be in TUNERY_ALLOWED_HOSTS."""

import re
from collections.abc import Iterable

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


def names_of_service(address: str, listed: Iterable[str]) -> frozenset[str]:
    """Return the names of a service that listens on an address, with those that are listed."""
    own = f"[{address}]" if ":" in address else address.lower()
    is_every_address = own in ("0.0.0.0", "[::]")  # noqa: S104 - compared, not listened on
    return _LOOPBACK_NAMES.union(listed, () if is_every_address else (own,))


def parse_host_names(text: str) -> list[str]:
    """Parse a list of host names. Returns them in lower case; none for an empty text.

    Raises:
        ValueError: an entry is no host name, or has more than a name.
    """
    names = [name.strip().lower() for name in text.split(",")] if text else []
    if not all(map(_NAME.fullmatch, names)):
        raise ValueError(
            "it must be host names such as tunery.example.org, separated by commas, without "
            "https://, a port or a path"
        )
    return names
