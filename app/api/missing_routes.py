"""Says why an address has no route: what is not offered, and what was probably meant."""

from fastapi import Request

from app.core.errors import NotFoundError

_MAX_ECHO = 200
"""How many characters of the request an answer repeats."""

_NOT_OFFERED = tuple(
    f"/{name}"
    for name in (
        "agents",
        "answers",
        "assistants",
        "audio",
        "batches",
        "chat",
        "chatkit",
        "classifications",
        "completions",
        "containers",
        "content_provenance_checks",
        "conversations",
        "decisions",
        "edits",
        "embeddings",
        "engines",
        "evals",
        "fine-tunes",
        "fine_tuning/alpha",
        "fine_tuning/checkpoints",
        "images",
        "live",
        "moderations",
        "organization",
        "projects",
        "realtime",
        "responses",
        "safety",
        "skills",
        "threads",
        "vaults",
        "vector_stores",
        "videos",
        "webhook_endpoints",
        "webhook_event_types",
    )
)
"""Paths of OpenAI's API, of today or of earlier clients, below which there is nothing here."""


def explain_missing_route(request: Request) -> NotFoundError:
    """The error for a request whose path no route has, whatever its method."""
    path = request.url.path
    asked = f"{request.method} {path}"[:_MAX_ECHO]
    has_prefix = path == "/v1" or path.startswith("/v1/")
    below = path.removeprefix("/v1") if has_prefix else path
    offered = [
        one for one in request.app.openapi()["paths"] if one.startswith("/v1/") and "{" not in one
    ]
    what_there_is = (
        f"This service offers {', '.join(offered)} and what is below them; docs/api.md and /docs "
        "of the service describe them."
    )
    if _is_below(below, *_NOT_OFFERED):
        hint = "" if has_prefix else " Add /v1 to the base URL of your client."
        return NotFoundError(
            f"{asked} is part of OpenAI's API and is not offered here. {what_there_is}{hint}",
            code="not_offered",
        )
    if not has_prefix and _is_below(f"/v1{path}", *offered):
        hint = f"Add /v1 to the base URL of your client, for /v1{path[:_MAX_ECHO]}."
    elif path.endswith("/") and _is_below(path, *offered):
        hint = "Remove the slash at its end."
    else:
        hint = what_there_is
    return NotFoundError(f"No such route: {asked}. {hint}", code="unknown_url")


def _is_below(path: str, *parents: str) -> bool:
    return f"{path}/".startswith(tuple(f"{parent}/" for parent in parents))
