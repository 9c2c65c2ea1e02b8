"""Reads from a request's headers whether it may have made a job before, and answers if it has."""

import hashlib
import math
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from app.services.idempotency import RequestOrigin
from app.services.new_jobs import NewJob

_DEFAULT_TIMEOUT_S = 600
"""How long OpenAI's clients wait for an answer by default."""
_MAX_TIMEOUT_S = 3600
_MAX_DIGITS = 4
"""Maximum number of digits in a plausible retry count."""

REPLAYED = "idempotent-replayed"
REPLAYED_HEADER: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REPLAYED: {
                "description": "`true` if an earlier sending of this request made the job. "
                "Otherwise the header is absent.",
                "schema": {"type": "string", "const": "true"},
            }
        }
    }
}


def _read_origin(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[ -~]+$",
            description="Key of your choice for this request. Requests with the same key and body "
            "make one job, however often they are sent.",
        ),
    ] = None,
) -> RequestOrigin:
    credentials = request.headers.get("authorization", "")
    return RequestOrigin(
        key=idempotency_key,
        credentials_sha256=hashlib.sha256(credentials.encode()).hexdigest(),
        retry_count=_retry_count(request.headers.get("x-stainless-retry-count", "")),
        timeout=timedelta(seconds=_timeout_s(request.headers.get("x-stainless-read-timeout", ""))),
    )


OriginDep = Annotated[RequestOrigin, Depends(_read_origin)]


def mark_replay(response: Response, new_job: NewJob) -> None:
    """Say in the headers that an earlier sending of this request made the job."""
    if new_job.is_replay:
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
