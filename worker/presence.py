"""A worker's row in the table `workers`, and what it says about the workers of this host."""

import logging
import sys
import threading
from collections.abc import Callable
from typing import Self

from app.core.clock import Clock, utc_now
from app.core.db.inspection import require_database
from app.core.db.repositories.workers import WorkerIdentity, WorkerRepository, WorkerStatus
from app.core.db.session import Database
from app.core.settings import read_settings
from worker.identity import is_alive, this_host

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 10.0
"""A third of the time after which a worker counts as silent; few writes for an idle service."""
_JOIN_S = 2.0
_BUSY_TIMEOUT_S = 2.0
"""How long a health check waits for the database: it must answer within a few seconds."""


class Presence:
    """Writes a worker's heartbeat while its block runs, then removes its row.

    The heartbeat comes from a thread of its own, whatever the worker is busy with. If it cannot be
    written, the worker continues without it, and the log says so once.
    """

    def __init__(
        self,
        worker: WorkerIdentity,
        database: Database,
        *,
        clock: Clock,
        is_stopping: Callable[[], bool],
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._worker = worker
        self._database = database
        self._clock = clock
        self._is_stopping = is_stopping
        self._interval_s = interval_s
        self._is_failing = False
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join(_JOIN_S)
        try:
            with self._database.writing() as session:
                WorkerRepository(session).remove([self._worker.worker_id])
        except Exception as error:
            logger.warning("the worker's row stays, for a janitor to remove: %s", error)

    def _run(self) -> None:
        while not self._has_ended.wait(self._interval_s):
            self._beat()

    def _beat(self) -> None:
        try:
            with self._database.writing() as session:
                WorkerRepository(session).beat(
                    self._worker, now=self._clock(), is_stopping=self._is_stopping()
                )
        except Exception as error:
            if not self._is_failing:
                logger.warning("the worker continues without its heartbeat: %s", error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("the worker's heartbeat is written again")
            self._is_failing = False


class UnhealthyError(Exception):
    """The workers of this host do not run as they should. The message is one line."""


def report_health() -> int:
    """Print one line about the workers of this host. Returns the exit code: 0 healthy, 1 not."""
    try:
        sys.stdout.write(f"healthy: {check_health()}\n")
    except UnhealthyError as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    return 0


def check_health() -> str:
    """Describe the healthy workers of this host, in one line.

    Raises:
        UnhealthyError: none runs, one is frozen, or the database cannot be asked.
    """
    try:
        database = Database(read_settings().resolved_database_url, busy_timeout_s=_BUSY_TIMEOUT_S)
        require_database(database)
        with database.reading() as session:
            workers = WorkerRepository(session).list_all()
        database.dispose()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnhealthyError(f"The workers cannot be looked up: {reason}") from error
    return _judge([worker for worker in workers if worker.identity.host == this_host()])


def _judge(workers: list[WorkerStatus]) -> str:
    running = [worker for worker in workers if is_alive(worker.identity)]
    if not running:
        died = [_name(worker) for worker in workers]
        raise UnhealthyError(f"Died: {', '.join(died)}" if died else "No worker runs on this host.")
    now = utc_now()
    for worker in running:
        if worker.is_silent(now=now):
            age_s = (now - worker.heartbeat_at).total_seconds()
            raise UnhealthyError(f"{_name(worker)} has given no sign of life for {age_s:.0f} s.")
    return ", ".join(f"{_name(worker)} is {worker.state}" for worker in running)


def _name(worker: WorkerStatus) -> str:
    return f"{worker.identity.worker_id} (process {worker.identity.pid})"
