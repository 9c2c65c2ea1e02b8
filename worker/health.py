"""`tunery worker --check`: whether the workers of this host are healthy."""

import sys
from datetime import datetime

from app.core.clock import utc_now
from app.core.db.inspection import require_database
from app.core.db.repositories.machines.server_clock import server_time
from app.core.db.repositories.workers import WorkerRepository, WorkerStatus
from app.core.db.session import Database
from app.core.settings import read_settings
from worker.presence import is_alive, this_host

_BUSY_TIMEOUT_S = 2.0
"""How long a health check waits for the database: it must answer within a few seconds."""


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
            now = server_time(session, local=utc_now())
        database.dispose()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UnhealthyError(f"The workers cannot be looked up: {reason}") from error
    here = [worker for worker in workers if worker.identity.host == this_host()]
    return _judge(here, now=now)


def _judge(workers: list[WorkerStatus], *, now: datetime) -> str:
    running = [worker for worker in workers if is_alive(worker.identity)]
    if not running:
        died = [_name(worker) for worker in workers]
        raise UnhealthyError(f"Died: {', '.join(died)}" if died else "No worker runs on this host.")
    for worker in running:
        if worker.is_silent(now=now):
            age_s = (now - worker.heartbeat_at).total_seconds()
            raise UnhealthyError(f"{_name(worker)} has sent no heartbeat for {age_s:.0f} s.")
    return ", ".join(f"{_name(worker)} is {worker.state}" for worker in running)


def _name(worker: WorkerStatus) -> str:
    return f"{worker.identity.worker_id} (process {worker.identity.pid})"
