"""Counts requests for Prometheus. `app/maintenance/metrics.py` has all the other metrics."""

from collections import defaultdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

from app.core.clock import steady_s
from app.core.sampling.messages import Accepted, Delta, Finished

ROUTE = "route"
"""Key in the state of a request that holds the result of `route_of`, where no route has run."""

WAITED_S = "waited_s"
"""Key in the state of a request that holds for how many seconds its answer has waited for changes.
That is no part of its duration."""

SAMPLED = "sampled"
"""Key in the state of a request that holds what was `Sampled` for it, for the access log."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the histogram: from a status poll to an upload."""
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_OTHER = "other"
"""Label of every path that is no route, and of every method that HTTP itself does not define."""


class Sampled:
    """What was sampled for one request, from now on.

    Attributes:
        prompt_tokens: number of tokens of the prompt.
        cached_tokens: number of tokens at its beginning that had been read before.
        first_token_s: time until the first text, in seconds; None before it.
    """

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = 0
        self.first_token_s: float | None = None
        self._began_s = steady_s()
        self._tokens_of = defaultdict[int, int](int)

    @property
    def completion_tokens(self) -> int:
        """Number of tokens of all answers. Each piece of an incomplete one counts as one token."""
        return sum(self._tokens_of.values())

    def take(self, answer: Accepted | Delta | Finished) -> None:
        """Count what the sampler has answered."""
        if isinstance(answer, Accepted):
            self.prompt_tokens = answer.prompt_tokens
            self.cached_tokens = answer.cached_tokens
        elif isinstance(answer, Finished):
            self._tokens_of[answer.choice] = answer.tokens
        else:
            self._tokens_of[answer.choice] += 1
            if self.first_token_s is None:
                self.first_token_s = steady_s() - self._began_s


class RequestMetrics:
    """Counts the requests of one application. Labels have few values, whatever clients send."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "tunery_http_request_duration_seconds",
            "Time from the head of a request to the last byte of its answer, less the time it "
            "waited for changes.",
            ("route", "method", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._received = Counter(
            "tunery_http_received_bytes",
            "Bytes of request bodies, uploads included.",
            ("route",),
            registry=self.registry,
        )
        self.open_streams = Gauge(
            "tunery_streams_open",
            "Streams and waiting requests that are open.",
            registry=self.registry,
        )
        self.stream_reads = Counter(
            "tunery_stream_reads",
            "How often the database was read for streams and waiting requests.",
            registry=self.registry,
        )
        self.store_requests = Counter(
            "tunery_store_requests",
            "What the API has asked of the blob store, and how that went.",
            ("operation", "outcome"),
            registry=self.registry,
        )
        for operation in ("open", "put", "delete"):
            self.store_requests.labels(operation, "ok")  # so that each begins with 0
        self.open_samplings = Gauge(
            "tunery_sampling_open",
            "Requests for completions that are being answered.",
            registry=self.registry,
        )
        self._sampled_tokens = Counter(
            "tunery_sampling_tokens",
            "Tokens of prompts, of those the cached ones, and of answers. An answer that was not "
            "completed counts one token for each piece that was sent.",
            ("kind",),
            registry=self.registry,
        )
        for kind in ("prompt", "cached", "completion"):
            self._sampled_tokens.labels(kind)  # so that each begins with 0
        self._first_token = Histogram(
            "tunery_sampling_first_token_seconds",
            "Time from the request to the sampler until the first text of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe_sampled(self, sampled: Sampled) -> None:
        """Count a request for completions that has ended, also if it was cancelled or failed."""
        self._sampled_tokens.labels("prompt").inc(sampled.prompt_tokens)
        self._sampled_tokens.labels("cached").inc(sampled.cached_tokens)
        self._sampled_tokens.labels("completion").inc(sampled.completion_tokens)
        if sampled.first_token_s is not None:
            self._first_token.observe(sampled.first_token_s)

    def observe(
        self, scope: Scope, status: int | None, seconds: float, received_bytes: int
    ) -> None:
        """Count a request that has ended.

        Args:
            status: status of the answer; None if the client left before there was one.
        """
        route = scope["state"].get(ROUTE) or route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        self.durations_of(route, method, status).observe(seconds)
        if received_bytes:
            self._received.labels(route).inc(received_bytes)

    def durations_of(self, route: str, method: str, status: int | None) -> Histogram:
        """Durations of the requests that are counted together with one that ended so."""
        return self._durations.labels(route, method, _class_of(status))

    def observe_unread(self, status: int, seconds: float) -> None:
        """Count a request that was refused before its head was read."""
        self.durations_of(_OTHER, _OTHER, status).observe(seconds)


def _class_of(status: int | None) -> str:
    return f"{status // 100}xx" if status else "none"


def route_of(scope: Scope) -> str:
    """Template of the path of a request that was routed, such as `/v1/files/{file_id}`."""
    template: str = getattr(scope.get("route"), "path_format", "")
    if not template:
        return _OTHER
    # The route does not know the prefix of its router.
    prefix, found, _ = scope["path"].rpartition(template.format(**scope["path_params"]))
    return f"{prefix}{template}" if found else template
