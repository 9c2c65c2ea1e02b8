"""The engines that requests are passed on to, and the connections to them."""

import logging
from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus

import httpx2

from app.core.errors import EngineFailedError, EngineUnavailableError
from app.core.sampling.engines import Engine

CONNECT_S = 5.0
"""Limit for a connection to an engine, in seconds."""
SILENCE_S = 600.0
"""Limit for the time in which an engine sends nothing, in seconds: it may read a long prompt."""

_MEDIA_TYPES = frozenset({"application/json", "text/event-stream"})

logger = logging.getLogger(__name__)


class Engines:
    """Sends requests to the engines of the settings.

    Args:
        engines: the first one that answers for a model is used.
        silence_s: see `SILENCE_S`.
    """

    def __init__(self, engines: Sequence[Engine], *, silence_s: float = SILENCE_S) -> None:
        self._engines = engines
        self._silence_s = silence_s

    def find(self, model: object) -> Engine | None:
        """The engine that answers for a model, if there is one."""
        if not isinstance(model, str):
            return None
        return next((each for each in self._engines if each.answers_for(model)), None)

    def __bool__(self) -> bool:
        return bool(self._engines)

    async def post(self, engine: Engine, path: str, content: bytes) -> httpx2.Response:
        """Send a request. The caller closes the answer, of which only the head is read.

        Args:
            path: path below the engine's base URL.

        Raises:
            EngineUnavailableError: the engine does not answer.
            EngineFailedError: it refuses the key, or what it answers is not in OpenAI's form.
        """
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        key = engine.key.get_secret_value()
        if key:
            headers["authorization"] = f"Bearer {key}"
        request = self._client.build_request(
            "POST", f"{engine.url}/{path}", headers=headers, content=content
        )
        try:
            answer = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            logger.warning("the engine for %s does not answer: %r", engine.models, error)
            raise EngineUnavailableError(
                "The engine that answers for this model cannot be reached or does not answer in "
                "time. Send the request again later."
            ) from error
        problem = _find_problem(answer)
        if problem is not None:
            await answer.aclose()
            logger.error("the engine for %s %s", engine.models, problem)
            raise EngineFailedError(
                "The engine that answers for this model has failed. The log of this service says "
                "why."
            )
        return answer

    async def close(self) -> None:
        """Close all connections. Every request has been answered."""
        if "_client" in vars(self):
            await self._client.aclose()

    @cached_property
    def _client(self) -> httpx2.AsyncClient:  # made when first used: it reads all authorities
        return httpx2.AsyncClient(
            timeout=httpx2.Timeout(self._silence_s, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,
        )


def _find_problem(answer: httpx2.Response) -> str | None:
    """What is wrong with an answer that its client must not see."""
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "refuses the key of TUNERY_SAMPLING_ENGINES"
    media_type = media_type_of(answer)
    if media_type not in _MEDIA_TYPES:
        return f"has answered {answer.status_code} with {media_type[:100]!r} instead of JSON"
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding != "identity":
        return f"has compressed its answer ({encoding[:100]!r}), although it must not"
    return None


def media_type_of(answer: httpx2.Response) -> str:
    """The media type of an answer, without parameters; empty if it has none."""
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()
