"""The metrics of the whole service, for Prometheus, on a port of their own: decision 0034.

They are read from the database and the disk when Prometheus asks.
"""

import logging
import platform
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.core.clock import steady_s, utc_now
from app.core.db import inspection
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database, Session
from app.core.disk import free_bytes
from app.core.errors import OperatorError, ServiceError
from app.core.sampling.health import answers
from app.core.settings import Settings
from app.core.version import VERSION

logger = logging.getLogger(__name__)

FRESH_S = 1.0
"""Time for which the values of the database are used again, so that no scraper can burden it."""


class CannotServeMetricsError(OperatorError):
    """The metrics' address is taken, or is not one of this machine."""


@contextmanager
def serving_metrics(
    registry: CollectorRegistry, settings: Settings, database: Database
) -> Generator[None]:
    """Serve the metrics from a thread of their own, if `TUNERY_METRICS_PORT` is set.

    Args:
        registry: the metrics that the process itself counts. Those of the service are added.

    Raises:
        CannotServeMetricsError: their address is taken.
    """
    if settings.metrics_port is None:
        yield
        return
    registry.register(ServiceCollector(settings, database))
    ProcessCollector(registry=registry)
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
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


class ServiceCollector(Collector):
    """Reads the metrics from the service's database and disk."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._read_at_s = float("-inf")
        self._from_database: list[GaugeMetricFamily] = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        build = GaugeMetricFamily(
            "tunery_build_info", "Version of the API; always 1.", labels=("version", "python")
        )
        build.add_metric((VERSION, platform.python_version()), 1)
        yield build
        yield GaugeMetricFamily(
            "tunery_disk_free_bytes",
            "Free bytes on the disk of the data directory.",
            free_bytes(self._settings.data_dir),
        )
        yield GaugeMetricFamily(
            "tunery_disk_reserved_bytes",
            "Free bytes below which uploads and jobs are refused: TUNERY_MIN_FREE_BYTES.",
            self._settings.min_free_bytes,
        )
        log_bytes = self._database.backend.log_bytes()
        if log_bytes is not None:
            yield GaugeMetricFamily(
                "tunery_database_wal_bytes", "Size of SQLite's write-ahead log.", log_bytes
            )
        if self._settings.sampling != "off":
            yield GaugeMetricFamily(
                "tunery_sampler_up",
                "1 if the sampler takes requests to models, else 0.",
                int(answers(self._settings.sampler_dir)),
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
            with self._database.reading() as session:
                families, is_up = _read_families(session), 1
        except (ServiceError, OperatorError) as error:
            logger.warning("no metrics of the database: %s", error)
            families, is_up = [], 0
        up = GaugeMetricFamily("tunery_database_up", "1 if the database answers, else 0.", is_up)
        return [up, *families]


def _read_families(session: Session) -> list[GaugeMetricFamily]:
    now = server_time(session, local=utc_now())
    oldest = inspection.find_oldest_waiting(session)
    jobs = {str(status): count for status, count in inspection.count_jobs(session).items()}
    workers = Counter({"idle": 0, "checking": 0, "running": 0, "draining": 0, "silent": 0})
    for worker in WorkerRepository(session).list_all():
        workers["silent" if worker.is_silent(now=now) else worker.state] += 1
    return [
        _by("status", "tunery_jobs", "Jobs in the database by status.", jobs),
        _by(
            "code",
            "tunery_failed_jobs",
            "Failed jobs in the database by error code.",
            inspection.count_failures(session),
        ),
        _tasks(session),
        GaugeMetricFamily(
            "tunery_queue_oldest_seconds",
            "Age of the oldest job that waits for a worker; 0 if none waits.",
            max(0.0, (now - oldest).total_seconds()) if oldest else 0,
        ),
        GaugeMetricFamily(
            "tunery_training_tokens_per_second",
            "Tokens a second of all running jobs together.",
            inspection.sum_training_speed(session),
        ),
        _by(
            "state",
            "tunery_workers",
            "Workers by state. Those without a recent heartbeat are silent.",
            workers,
        ),
    ]


def _tasks(session: Session) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "tunery_tasks", "Exports and reports by kind and status.", labels=("kind", "status")
    )
    for labels, count in inspection.count_tasks(session).items():
        family.add_metric(labels, count)
    return family


def _by(label: str, name: str, description: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    """One value for each value of a label."""
    family = GaugeMetricFamily(name, description, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family
