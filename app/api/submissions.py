"""How a request that makes a job says that it has been sent before."""

import hashlib
import math
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from app.services.submissions import Sender, Submitted

_DEFAULT_TIMEOUT_S = 600
"""Of OpenAI's clients."""
_MAX_TIMEOUT_S = 3600
_MAX_DIGITS = 4
"""Of a retry count; more is nonsense."""

REPLAYED = "idempotent-replayed"
REPLAYED_HEADER: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REPLAYED: {
                "description": "`true` where this request had made the job before; else absent.",
                "schema": {"type": "string", "const": "true"},
            }
        }
    }
}


def _read_sender(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[ -~]+$",
            description="The same key and body make one job, however often they are sent.",
        ),
    ] = None,
) -> Sender:
    credentials = request.headers.get("authorization", "")
    return Sender(
        key=idempotency_key,
        credentials_sha256=hashlib.sha256(credentials.encode()).hexdigest(),
        retry_count=_retry_count(request.headers.get("x-stainless-retry-count", "")),
        timeout=timedelta(seconds=_timeout_s(request.headers.get("x-stainless-read-timeout", ""))),
    )


SenderDep = Annotated[Sender, Depends(_read_sender)]


def mark_replay(response: Response, submitted: Submitted) -> None:
    """Say so in the headers when this request has not made the job that is the answer."""
    if submitted.is_replay:
        response.headers[REPLAYED] = "true"


def _retry_count(text: str) -> int:
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else 0


def _timeout_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return _DEFAULT_TIMEOUT_S
    is_sensible = math.isfinite(seconds) and seconds > 0
    return min(seconds, _MAX_TIMEOUT_S) if is_sensible else _DEFAULT_TIMEOUT_S
