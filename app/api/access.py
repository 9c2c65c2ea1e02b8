"""What each route needs: one scope of the caller's key, checked before the body is read."""

from typing import Any

from fastapi import FastAPI, Request, params
from fastapi import Security as FastApiSecurity
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import HTTPBearer
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from app.api.browser import dashboard
from app.core.access import Caller, Scope
from app.core.errors import PermissionDeniedError

REQUEST_ID = "request_id"
"""Key in the state of a request that holds the id of the request."""
CALLER = "caller"
"""Key in the state of a request that holds its `Caller`. Absent on an open path without a key."""
RECHECK = "recheck"
"""Key in the state of a request that holds a function for answers that take long. It raises
UnauthenticatedError once the caller's key is no longer valid."""

OPEN_PATHS = frozenset({"/healthz", "/openapi.json", "/docs", "/docs/page.js", *dashboard.PAGES})
"""Paths that need no key: they show what is in this repository, or that the service runs."""
OPEN_REQUESTS = frozenset({("POST", "/v1/session"), ("DELETE", "/v1/session")})
"""Method and path of what a browser sends to sign in or out, with a valid key or without."""
OPEN_PREFIXES = ("/docs/assets/", f"{dashboard.ASSETS}/")
KEY_OPTIONAL_PATHS = frozenset({"/readyz"})
"""Paths that say less to a caller without a key."""


class _BearerKey(HTTPBearer):
    """Documents that a route takes a key. The key itself is checked before any route is chosen."""

    async def __call__(self, request: Request) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Accept every request."""


_bearer_key = _BearerKey(
    scheme_name="ApiKey",
    description="An API key of a project. Not needed while the service has no keys, and only "
    "this machine can reach it.",
    auto_error=False,
)


def needs(*scopes: Scope) -> Any:
    """The policy of a route, for its `dependencies`: the scope that the caller's key must have.

    Args:
        scopes: one scope. None lets every valid key use the route.
    """
    return FastApiSecurity(_bearer_key, scopes=scopes)


class PolicyMissingError(Exception):
    """A route does not say which scope it needs, so nobody could use it safely."""


class PolicyRoute(APIRoute):
    """A route that refuses callers without the scope that it `needs`, if it needs one."""

    def __init__(self, path: str, *args: Any, **options: Any) -> None:
        super().__init__(path, *args, **options)
        policies = [each for each in self.dependencies if isinstance(each, params.Security)]
        scopes = [Scope(scope) for policy in policies for scope in policy.scopes or ()]
        if len(policies) != 1 or len(scopes) > 1:
            raise _no_policy(path)
        self.scope = scopes[0] if scopes else None

    async def handle(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if self.scope is not None and scope["method"] in self.methods:
            _require(scope["state"][CALLER], self.scope)
        await super().handle(scope, receive, send)


def require_policies(app: FastAPI) -> None:
    """Check that every route but the open ones has a policy.

    Raises:
        PolicyMissingError: one has none.
    """
    for route in iter_route_contexts(app.routes):
        path = route.path or ""
        is_public = path in KEY_OPTIONAL_PATHS or all(
            is_open(method, path) or is_open(method, f"{path}/")
            for method in route.methods or ("",)
        )
        if not isinstance(route.original_route, PolicyRoute) and not is_public:
            raise _no_policy(path)


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key."""
    is_open_path = path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
    return is_open_path or (method, path) in OPEN_REQUESTS


def _require(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        has = ", ".join(sorted(caller.scopes)) or "none"
        raise PermissionDeniedError(
            f"This request needs an API key with the scope '{scope}'; the scopes of this key are: "
            f"{has}. The operator of this service creates keys with 'tunery keys create'."
        )


def _no_policy(path: str) -> PolicyMissingError:
    return PolicyMissingError(
        f"The route {path} does not say who may use it. Declare it on a router with "
        "`route_class=PolicyRoute`, with `dependencies=[needs(Scope.READ)]`."
    )
