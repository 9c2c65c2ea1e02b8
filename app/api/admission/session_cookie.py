"""The cookie that holds the API key of a browser in which somebody has signed in: decision 0047."""

from datetime import datetime, timedelta

from fastapi import Response

_SECURE_NAME = "__Host-tunery_key"
"""A browser accepts this name only over https, from this host, and for all of its paths."""
_PLAIN_NAME = "tunery_key"
"""Name of the cookie where the service is opened over plain http: on the same machine."""

_MAX_AGE = timedelta(days=30)
"""Time after which a browser forgets the key, so that it does not stay in one that was left."""


def read_key(cookies: str, *, is_https: bool) -> str:
    """The key in a header `Cookie`. Empty if there is none, or more than one of the same name.

    Args:
        cookies: value of the header.
        is_https: whether the request is known to have come over https. If so, only a cookie counts
            that no other page could have set.
    """
    pairs = [cookie.strip().partition("=") for cookie in cookies.split(";")]
    for name in (_SECURE_NAME,) if is_https else (_SECURE_NAME, _PLAIN_NAME):
        keys = [value for each, _, value in pairs if each == name]
        if keys:
            return keys[0] if len(keys) == 1 else ""
    return ""


def set_key(
    response: Response, key: str, *, is_https: bool, expires_at: datetime | None, now: datetime
) -> None:
    """Let the browser keep a key, until the key expires but not for longer than 30 days."""
    lifetime = _MAX_AGE if expires_at is None else min(_MAX_AGE, expires_at - now)
    _set(response, key, is_https=is_https, max_age_s=int(lifetime.total_seconds()))


def clear_key(response: Response) -> None:
    """Let the browser forget the key."""
    for is_https in (True, False):
        _set(response, "", is_https=is_https, max_age_s=0)


def _set(response: Response, value: str, *, is_https: bool, max_age_s: int) -> None:
    response.set_cookie(
        _SECURE_NAME if is_https else _PLAIN_NAME,
        value,
        max_age=max_age_s,
        # Other services of the same machine get this cookie too: none that has only other paths.
        path="/" if is_https else None,
        secure=is_https,
        httponly=True,
        samesite="strict",
    )
