"""ETags: names of what an answer says, so that it need not be sent again.

Source:
    RFC 9110, 8.8.3 and 13.1.2
"""

import hashlib

_TAG_BYTES = 16
"""128 bits: two answers of a service never share a tag."""


def entity_tag(body: bytes) -> str:
    """The strong ETag of an answer with this body, with its quotation marks."""
    return f'"{hashlib.blake2b(body, digest_size=_TAG_BYTES).hexdigest()}"'


def lists_tag(if_none_match: str, tag: str) -> bool:
    """Whether a header `If-None-Match` names this tag, which a proxy may have marked as weak.

    Args:
        if_none_match: value of the header; empty if the request has none.
    """
    named = (one.strip() for one in if_none_match.split(","))
    return any(one == "*" or one.removeprefix("W/") == tag for one in named)
