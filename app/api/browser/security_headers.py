"""Headers that keep a browser from doing more with an answer than to show or save it.

No header lets other origins read answers: there is no CORS.
"""

PAGE_POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; "
    "frame-ancestors 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'"
)
"""Content security policy of a page: it loads and asks for nothing but what this service has."""

_ALWAYS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_KEEP_NOTHING = (b"cache-control", b"no-store")
_ASK_EACH_TIME = (b"cache-control", b"private, no-cache")
"""For an answer with an ETag: a browser may keep it, and asks whether it is still the same."""


def add_security_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Add the headers that an answer does not set itself."""
    present = {name for name, _ in headers}
    caching = _ASK_EACH_TIME if b"etag" in present else _KEEP_NOTHING
    headers += [header for header in (*_ALWAYS, caching) if header[0] not in present]
