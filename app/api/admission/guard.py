"""Refuses a request before a byte of its body is read, and before any answer is reused.

A web page cannot be turned against the service: requests under a foreign host name (DNS rebinding)
and changes that another page asks for (cross-site request forgery) are refused, with or without
keys. A browser may send the key in a cookie, but only for the service's own pages: decision 0047.
"""

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import NoReturn

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import CALLER, KEY_OPTIONAL_PATHS, RECHECK, is_open
from app.api.admission import session_cookie
from app.api.admission.authentication import AUTHENTICATED, Authenticated, Authenticator
from app.api.admission.token_buckets import TokenBuckets
from app.api.errors import MAX_ECHO, service_error_response
from app.core.errors import (
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServiceError,
    UnauthenticatedError,
)

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_PAGE = "same-origin"
"""Value of `Sec-Fetch-Site` with which a browser says that a page of this service asks."""
_OWN_SITE = frozenset({OWN_PAGE, "none"})
"""Values of `Sec-Fetch-Site`: the page is this service's own, or a person typed the address."""
_PORT = re.compile(r":\d*$")

_HOW_TO_SEND = (
    "Send a valid key in the header 'Authorization: Bearer YOUR_KEY'. The operator of this service "
    "creates keys with 'tunery keys create'."
)

_NAMED = frozenset(
    {
        b"authorization",
        b"cookie",
        b"host",
        b"openai-organization",
        b"openai-project",
        b"origin",
        b"sec-fetch-site",
    }
)
"""The headers that decide whether a request is served."""


class Guard:
    """Middleware that refuses requests, and gives the others their `Caller`.

    Args:
        hosts: names, without a port, under which the service may be addressed.
        organization: the service's organization.
        buckets: limit the requests of each project.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        hosts: Collection[str],
        organization: str,
        buckets: TokenBuckets,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._hosts = hosts
        self._buckets = buckets
        self._organizations = {organization, f"org-{organization}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._admit(scope)
        except ServiceError as error:
            await service_error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = _read_headers(scope)
        self._check_host(headers)
        if scope["method"] not in _READING:
            _check_origin(headers)
        _check_path(scope)
        if is_open(scope["method"], scope["path"]):
            return
        _use_cookie(scope, headers)
        authorization = headers.get(b"authorization", "")
        try:
            authenticated = await self._authenticator.authenticate(authorization)
        except UnauthenticatedError as error:
            if scope["path"] in KEY_OPTIONAL_PATHS:
                return
            raise UnauthenticatedError(f"{error} {_HOW_TO_SEND}") from error
        if authenticated.caller.key_id is not None:
            self._check_membership(headers, authenticated)
            self._check_rate(authenticated)
        scope["state"][AUTHENTICATED] = authenticated
        scope["state"][CALLER] = authenticated.caller
        scope["state"][RECHECK] = partial(self._authenticator.check, authorization)

    def _check_host(self, headers: Mapping[bytes, str]) -> None:
        host = headers.get(b"host", "")
        name = _PORT.sub("", host).rstrip(".").lower()
        if host and name not in self._hosts:
            raise PermissionDeniedError(
                f"This service does not answer under the name {name[:MAX_ECHO]!r}. Its operator "
                "can add the name to TUNERY_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )

    def _check_rate(self, authenticated: Authenticated) -> None:
        limit = authenticated.max_requests_per_minute
        if limit is None:
            return
        wait_s = self._buckets.take(authenticated.caller.project_id, per_minute=limit)
        if wait_s:
            raise RateLimitError(
                f"The project may send {limit:,} requests a minute. Send this request again in "
                f"{wait_s} s.",
                retry_after_s=wait_s,
            )

    def _check_membership(self, headers: Mapping[bytes, str], authenticated: Authenticated) -> None:
        project = headers.get(b"openai-project", "")
        if project and project not in (
            authenticated.caller.project_id,
            authenticated.project_name,
        ):
            raise _mismatched("OpenAI-Project", "project", project)
        organization = headers.get(b"openai-organization", "")
        if organization and organization not in self._organizations:
            raise _mismatched("OpenAI-Organization", "organization", organization)


def _read_headers(scope: Scope) -> dict[bytes, str]:
    """The headers that matter here. A header that is given twice has both values, and fits none."""
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _NAMED:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _use_cookie(scope: Scope, headers: dict[bytes, str]) -> None:
    """Let the key in the cookie of a page of this service stand for the header `Authorization`."""
    if b"authorization" in headers or headers.get(b"sec-fetch-site") != OWN_PAGE:
        return
    cookies = headers.get(b"cookie", "")
    key = session_cookie.read_key(cookies, is_https=scope["scheme"] == "https")
    if key:
        headers[b"authorization"] = f"Bearer {key}"
        scope["headers"] = [
            *scope["headers"],
            (b"authorization", f"Bearer {key}".encode("latin-1")),
        ]


def _check_origin(headers: Mapping[bytes, str]) -> None:
    """Refuse a change that another web page asks for. Other clients send neither header."""
    site = headers.get(b"sec-fetch-site", "none")
    origin = headers.get(b"origin")
    if site not in _OWN_SITE:
        _refuse_page(f"Sec-Fetch-Site: {site}")
    if origin is not None and origin.partition("://")[2] != headers.get(b"host"):
        _refuse_page(f"Origin: {origin}")


def _refuse_page(header: str) -> NoReturn:
    raise PermissionDeniedError(
        f"A page of another web site may not change anything here ({header[:MAX_ECHO]}).",
        code="cross_site_request",
    )


def _check_path(scope: Scope) -> None:
    """Refuse an encoded slash, which would let an id name a path below another route."""
    raw_path = scope["raw_path"]
    if b"%2f" in raw_path.lower() and not raw_path.startswith(b"/v1/models/"):
        shown = raw_path.decode("ascii", "replace")[:MAX_ECHO]
        raise NotFoundError(
            f"No such route: {scope['method']} {shown}. Only the name of a model can contain '/' "
            "as %2F.",
            code="unknown_url",
        )


def _mismatched(header: str, what: str, value: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"The API key is not one of the {what} {value[:MAX_ECHO]!r}, which the header {header} "
        "names. Leave the header out, or use another key.",
        code="mismatched_project" if what == "project" else "mismatched_organization",
    )
