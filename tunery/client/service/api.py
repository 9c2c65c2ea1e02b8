"""The service's API, spoken by the stock `openai` client. Answers are JSON as the service sends it.

Every method raises `RefusedError` if the service refuses the request, and `AwayError` if it does
not answer or is busy, after the client has tried several times.
"""

import re
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar, cast

from app.core.errors import OperatorError
from tunery.client.screen.terminal import escape
from tunery.client.service.profile import Profile

if TYPE_CHECKING:
    import httpx2
    import openai

Json = dict[str, Any]

MAX_PAGE = 1000
"""Most items that every list of the service sends at once."""

_RETRIES = 2
"""Times that a request is repeated if the service is away or busy. The pauses take 1.5 s in sum,
unless a busy service asks for longer ones."""

_CONNECT_S = 5.0
_ANSWER_S = 600.0
"""Seconds for an answer: the service may have a large dataset to check first."""
_HURRIED_S = 2.0

_IDLE_S = 45.0
"""Seconds without a byte after which a stream is broken. The service sends one every 15 s."""

_UNSENT_KEY = "unused"
"""The key where there is none: the stock client insists on one, and a local service ignores it."""

_AS_STREAM = {"X-Stainless-Raw-Response": "stream"}
"""Makes the stock client hand over an answer before its body has arrived."""

_SHOWN_PROBLEMS = 10
_LIST_IN_BODY = "see 'errors'"
"""How the message of a refusal names the list of problems, which people see below the message."""
_UNAUTHORIZED, _TOO_MANY_REQUESTS, _SERVER_ERRORS = 401, 429, 500


class RefusedError(OperatorError):
    """The service refuses the request. The message is the service's own."""


class AwayError(OperatorError):
    """The service does not answer, or is busy.

    Attributes:
        code: the code of the error. Empty if the service did not answer.
    """

    may_pass: ClassVar[bool] = True

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Api:
    """One service, as one key may use it.

    Args:
        profile: address and key.
        is_hurried: whether no answer is better than one that takes long.
    """

    def __init__(self, profile: Profile, *, is_hurried: bool = False) -> None:
        from httpx2 import Timeout  # noqa: PLC0415 - see the package
        from openai import Omit, OpenAI  # noqa: PLC0415

        self._base_url = profile.base_url
        self._has_key = bool(profile.api_key)
        # Variables for OpenAI's own service must not reach this one, which would refuse them.
        none = cast("Mapping[str, str]", {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()})
        self._client = OpenAI(
            base_url=profile.base_url,
            api_key=profile.api_key or _UNSENT_KEY,
            max_retries=0 if is_hurried else _RETRIES,
            timeout=Timeout(_HURRIED_S) if is_hurried else Timeout(_ANSWER_S, connect=_CONNECT_S),
            default_headers=none,
        )

    def get(self, path: str, **params: object) -> Json:
        """Get one object. A parameter that is None is not sent."""
        with self._explained():
            options: Any = {"params": _without_none(params)}
            return _as_json(self._client.get(path, cast_to=object, options=options))

    def pages(self, path: str, *, limit: int | None = None, **params: object) -> Iterator[Json]:
        """Yield the items of a list, at most `limit` of them."""
        after = None
        left = limit
        while left is None or left > 0:
            at_most = min(left or MAX_PAGE, MAX_PAGE)
            page = self.get(path, limit=at_most, after=after, **params)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]
            left = None if left is None else left - at_most

    def post(self, path: str, body: Json | None = None, *, idempotency_key: str = "") -> Json:
        """Post. With an idempotency key, the request can be repeated without a second effect."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        with self._explained():
            options: Any = {"headers": headers}
            answer = self._client.post(path, cast_to=object, body=body, options=options)
            return _as_json(answer)

    def delete(self, path: str) -> Json:
        with self._explained():
            return _as_json(self._client.delete(path, cast_to=object))

    def upload(self, name: str, content: IO[bytes]) -> Json:
        """Upload a dataset. Returns the file."""
        with self._explained():
            file = self._client.files.create(file=(name, content), purpose="fine-tune")
            return file.to_dict(mode="json")

    def post_form(
        self,
        path: str,
        form: Mapping[str, str],
        name: str,
        content: IO[bytes],
        *,
        idempotency_key: str,
    ) -> Json:
        """Post a form whose last field is `file`. The key makes it safe to repeat."""
        headers = {"Content-Type": "multipart/form-data", "Idempotency-Key": idempotency_key}
        with self._explained():
            options: Any = {"headers": headers}
            files = {"file": (name, content)}
            answer = self._client.post(
                path, cast_to=object, body=form, files=files, options=options
            )
            return _as_json(answer)

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Json | None = None,
        **params: object,
    ) -> Generator["httpx2.Response"]:
        """Get, or post a body, and read the answer in the block. It is not tried again."""
        import httpx2  # noqa: PLC0415 - see the package

        # A model may have to be loaded before it answers; everything else is there at once.
        idle_s = _IDLE_S if body is None else _ANSWER_S
        options: Any = {
            "headers": {**(headers or {}), **_AS_STREAM},
            "params": _without_none(params),
            "timeout": httpx2.Timeout(idle_s, connect=_CONNECT_S),
            "max_retries": 0,
        }
        send = self._client.get if body is None else partial(self._client.post, body=body)
        with self._explained():
            response = send(path, cast_to=httpx2.Response, options=options)
            try:
                yield response
            finally:
                response.close()

    @contextmanager
    def _explained(self) -> Generator[None]:
        import httpx2  # noqa: PLC0415 - see the package
        import openai  # noqa: PLC0415

        try:
            yield
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            raise AwayError(
                f"{self._base_url} does not answer: {_reason(error)}. Is the service running? "
                "TUNERY_BASE_URL or a profile names its address."
            ) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIError as error:  # an answer that is no JSON
            raise AwayError(f"{self._base_url} gave no valid answer: {error.message}") from error

    def _refused(self, error: "openai.APIStatusError") -> OperatorError:
        if not isinstance(error.body, dict):
            return RefusedError(
                f"{self._base_url} answered with status {error.status_code}, and not as Tunery "
                "does. The address of a service ends in /v1."
            )
        if error.status_code == _UNAUTHORIZED and not self._has_key:
            return RefusedError(
                f"{self._base_url} wants an API key. Set TUNERY_API_KEY, or api_key in a profile. "
                "The operator of the service creates keys with `tunery keys create`."
            )
        body = cast("Json", error.body)
        problems = _problems(body)
        message = str(body.get("message", error.message))
        if problems:
            message = message.replace(_LIST_IN_BODY, "see below")
        message = escape("\n".join([message, *problems]), keep="\n")
        is_busy = error.status_code >= _SERVER_ERRORS or (
            error.status_code == _TOO_MANY_REQUESTS
            and error.response.headers.get("x-should-retry") != "false"
        )
        return AwayError(message, code=error.code or "") if is_busy else RefusedError(message)


def new_idempotency_key() -> str:
    """A key for one run of a command: what it sends again has no second effect."""
    return f"tunery-{uuid.uuid4()}"


def job_path(job_id: str, *rest: str) -> str:
    """Address of a job, or of something of it."""
    return "/".join(("/fine_tuning/jobs", checked_id(job_id), *rest))


def checked_id(text: str) -> str:
    """Return an id that a user has typed.

    Raises:
        OperatorError: it cannot be one.
    """
    if not re.fullmatch(r"[\w-]{1,100}", text, re.ASCII):
        raise OperatorError(f"{escape(text[:100])!r} is not an id.")
    return text


def _problems(body: Json) -> list[str]:
    """What the service says of single lines of a file, or fields of a request."""
    listed: list[Json] = body.get("errors") or []
    lines = [_describe_problem(each) for each in listed[:_SHOWN_PROBLEMS]]
    more = int(body.get("error_count") or len(listed)) - len(lines)
    return [*lines, f"  and {more:,} more"] if more > 0 else lines


def _describe_problem(problem: Json) -> str:
    line, path = problem.get("line"), problem.get("path") or problem.get("param")
    place = ", ".join([f"line {line}"] * bool(line) + [str(path)] * bool(path))
    return f"  {place}: {problem.get('message')}" if place else f"  {problem.get('message')}"


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return escape(str(cause).rstrip(".") or type(cause).__name__)


def _without_none(params: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in params.items() if value is not None}


def _as_json(answer: object) -> Json:
    if not isinstance(answer, dict):
        raise AwayError("The service gave an answer that is not Tunery's.")
    return cast("Json", answer)
