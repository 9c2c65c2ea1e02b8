"""What the operator may write in TUNERY_ALLOWED_HOSTS."""

import re

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")


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
