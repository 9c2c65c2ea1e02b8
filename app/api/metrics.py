"""The service's metrics for Prometheus, on a port of their own: see decision 0034.

Requests are counted where they are answered. Everything else is read from the database and the disk
when Prometheus asks.
"""

import logging
import platform
import threading
from collections import Counter as Tally
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from app.api.deps import Resources
from app.core.clock import steady_s, utc_now
from app.core.db import inspection
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Session
from app.core.disk import free_bytes
from app.core.errors import OperatorError, ServiceError
from app.core.version import VERSION

logger = logging.getLogger(__name__)

FRESH_S = 1.0
"""Time for which the values of the database are used again, so that no scraper can burden it."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the histogram: from a status poll to an upload."""
ROUTE = "route"
"""Key in the state of a request that holds the result of `route_of`, where no route has run."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_OTHER = "other"
"""Label of every path that is no route, and of every method that HTTP itself does not define."""


class CannotServeMetricsError(OperatorError):
    """The metrics' address is taken, or is not one of this machine."""


class RequestMetrics:
    """Counts the requests of one application. Labels have few values, whatever clients send."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._durations = Histogram(
            "tunery_http_request_duration_seconds",
            "Time from the head of a request to the last byte of its answer.",
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

    def observe(
        self, scope: Scope, status: int | None, seconds: float, received_bytes: int
    ) -> None:
        """Count a request that has ended.

        Args:
            status: status of the answer; None if the client left before there was one.
        """
        route = scope["state"].get(ROUTE) or route_of(scope)
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        kind = f"{status // 100}xx" if status else "none"
        self._durations.labels(route, method, kind).observe(seconds)
        if received_bytes:
            self._received.labels(route).inc(received_bytes)


class ServiceCollector(Collector):
    """Reads the metrics of the whole service from its database and its disk."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._lock = threading.Lock()
        self._read_at_s = float("-inf")
        self._from_database: list[GaugeMetricFamily] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        settings = self._resources.settings
        build = GaugeMetricFamily(
            "tunery_build_info", "Version of the API; always 1.", labels=("version", "python")
        )
        build.add_metric((VERSION, platform.python_version()), 1)
        yield build
        yield GaugeMetricFamily(
            "tunery_disk_free_bytes",
            "Free bytes on the disk of the data directory.",
            free_bytes(settings.data_dir),
        )
        yield GaugeMetricFamily(
            "tunery_disk_reserved_bytes",
            "Free bytes below which uploads and jobs are refused: TUNERY_MIN_FREE_BYTES.",
            settings.min_free_bytes,
        )
        log_bytes = self._resources.database.backend.log_bytes()
        if log_bytes is not None:
            yield GaugeMetricFamily(
                "tunery_database_wal_bytes", "Size of SQLite's write-ahead log.", log_bytes
            )
        yield from self._read_database()

    def _read_database(self) -> list[GaugeMetricFamily]:
        with self._lock:
            if steady_s() - self._read_at_s > FRESH_S:
                self._from_database = self._query()
                self._read_at_s = steady_s()
            return self._from_database

    def _query(self) -> list[GaugeMetricFamily]:
        """The metrics of the database; only that it is down, if it does not answer."""
        try:
            families, is_up = self._resources.read(_read_families), 1
        except (ServiceError, OperatorError) as error:
            logger.warning("no metrics of the database: %s", error)
            families, is_up = [], 0
        up = GaugeMetricFamily("tunery_database_up", "1 if the database answers, else 0.", is_up)
        return [up, *families]


def _read_families(session: Session) -> list[GaugeMetricFamily]:
    now = utc_now()
    oldest = inspection.find_oldest_queued(session)
    workers = WorkerRepository(session).list_all()
    states = Tally(
        "silent" if each.is_silent(now=now) else each.state.name.lower() for each in workers
    )
    return [
        _by_label(
            "tunery_jobs",
            "Jobs in the database by status.",
            "status",
            {str(status): count for status, count in inspection.count_jobs(session).items()},
        ),
        _by_label(
            "tunery_failed_jobs",
            "Failed jobs in the database by error code.",
            "code",
            inspection.count_failures(session),
        ),
        GaugeMetricFamily(
            "tunery_queue_oldest_seconds",
            "Age of the oldest queued job; 0 if none is queued.",
            max(0.0, (now - oldest).total_seconds()) if oldest else 0,
        ),
        GaugeMetricFamily(
            "tunery_training_tokens_per_second",
            "Tokens a second of all running jobs together.",
            inspection.sum_training_speed(session),
        ),
        _by_label(
            "tunery_workers",
            "Workers by state. Those without a recent heartbeat are silent.",
            "state",
            dict.fromkeys(("idle", "running", "draining", "silent"), 0) | states,
        ),
    ]


def _by_label(name: str, description: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, description, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family


def route_of(scope: Scope) -> str:
    """Template of the path of a request that was routed, such as `/v1/files/{file_id}`."""
    route = scope.get("route")
    template: str = getattr(route, "path_format", "")
    if not template:
        return _OTHER
    # The route does not know the prefix of its router.
    prefix, found, _ = scope["path"].rpartition(template.format(**scope["path_params"]))
    return f"{prefix}{template}" if found else template


@contextmanager
def serving_metrics(metrics: RequestMetrics, resources: Resources) -> Generator[None]:
    """Serve the metrics from a thread of their own, if `TUNERY_METRICS_PORT` is set.

    Raises:
        CannotServeMetricsError: their address is taken.
    """
    settings = resources.settings
    if settings.metrics_port is None:
        yield
        return
    metrics.registry.register(ServiceCollector(resources))
    ProcessCollector(registry=metrics.registry)
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise CannotServeMetricsError(
            f"Cannot serve metrics on {host}:{port}: {error.strerror}. Choose another address with "
            "TUNERY_METRICS_HOST and TUNERY_METRICS_PORT."
        ) from error
    logger.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
