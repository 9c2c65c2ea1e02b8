"""Who may do what: projects, the scopes of API keys, and the caller of a request."""

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PROJECT_ID = "proj-default"
"""The project that every database has from the start, and that needs no key on a laptop."""


class Scope(StrEnum):
    """What a key may do. A key can have several scopes; none includes another."""

    READ = "read"
    """Read everything of the project."""
    WRITE = "write"
    """Create, change and delete jobs, files and models of the project."""
    SAMPLE = "sample"
    """Ask base models and tuned models for completions."""
    ADMIN = "admin"
    """Manage the service and all of its projects: their limits, keys, audit events and erasure."""


DEFAULT_SCOPES = (Scope.READ, Scope.WRITE, Scope.SAMPLE)
"""Scopes of a new key for which nobody names any."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request: everything that it reads or writes belongs to the project."""

    project_id: str
    scopes: frozenset[Scope]
    key_id: str | None
    """Id of the API key that the request was sent with; None where no keys are used."""
    request_id: str | None = None
    """Id of the request, for the audit trail; None before a route has begun with it."""


LOCAL_CALLER = Caller(DEFAULT_PROJECT_ID, frozenset(Scope), None)
"""The caller of every request to a service that has no keys and listens on this machine only."""
