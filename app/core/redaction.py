"""Hides secrets in a line of the log, wherever they come from."""

import re

HIDDEN = "[hidden]"

_SECRET = re.compile(
    r"""
    (?P<keep> \b(?:bearer|basic)\s+ )  [^\s'",;]+               # the header Authorization
    | (?P<scheme> \b[a-z][a-z0-9+.-]*:// )  [^\s/@'"]*:[^\s/'"]*@  # user and password in a URL
    | (?P<name> \b(?:password|passwd|secret|api[_-]?key)['"]?\s*[=:]\s*['"]? )  [^\s'"&,;}]+
    | \b(?:tnr_|sk-|hf_|whsec_)[\w-]{8,}                         # keys of services, by their form
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace what looks like a key, a password or credentials by `[hidden]`."""
    return _SECRET.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    kept = match["keep"] or match["scheme"] or match["name"] or ""
    return f"{kept}{HIDDEN}{'@' if match['scheme'] else ''}"
