"""A worker's row in the table `workers`: who it is, and its heartbeat."""

import logging
import math
import os
import platform
import random
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from app.core.abilities.ability import Ability
from app.core.clock import Clock
from app.core.db.repositories.workers import Crowd, WorkerIdentity, WorkerRepository
from app.core.db.session import Database
from worker.launch.locks import BOOT_ID, start_ticks

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 10.0
"""A third of the time after which a worker counts as silent; few writes for an idle service."""
_JOIN_S = 2.0

FEW = 16
"""Workers that may each ask the database as often as one that is alone."""


class Pace:
    """How often workers ask the database: less often, the more of them there are.

    All together then ask about as often as a few, and a new job is noticed as soon: the first that
    asks is one of many. Random pauses keep them from asking all at once.

    Attributes:
        crowd: how many there were at the last heartbeat of a worker of this process.
    """

    def __init__(self) -> None:
        self.crowd = Crowd()

    def while_idle_s(self, interval_s: float, *, most_s: float = math.inf, few: int = FEW) -> float:
        """Pause of a worker that has nothing to train, in seconds: `interval_s` among a few."""
        return _stretched_s(interval_s, self.crowd.idle / few, most_s)

    def always_s(self, interval_s: float, *, most_s: float) -> float:
        """Pause in what every worker does all the time, in seconds: `interval_s` among a few."""
        return _stretched_s(interval_s, self.crowd.living / FEW, most_s)


def _stretched_s(interval_s: float, factor: float, most_s: float) -> float:
    if factor <= 1 or interval_s >= most_s:
        return interval_s
    stretched_s = min(interval_s * factor, most_s)
    return max(interval_s, stretched_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret


def this_host() -> str:
    """Identifier of this boot of this machine and of the namespace of its process ids."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink()
        return f"{BOOT_ID.read_text().strip()} {namespace}"
    except OSError:  # not Linux
        return platform.node()


def this_worker(worker_id: str) -> WorkerIdentity:
    """Identity of a worker of this process.

    Process ids are used again, and other machines and containers use the same. Together with the
    host and the start of the process, an id names one process for ever.
    """
    pid = os.getpid()
    return WorkerIdentity(worker_id, this_host(), pid, process_started=start_ticks(pid) or 0)


def is_alive(worker: WorkerIdentity) -> bool:
    """Whether the process of a worker of this host still runs."""
    return start_ticks(worker.pid) == worker.process_started


@contextmanager
def repeating(
    beat: Callable[[], None], *, interval_s: Callable[[], float], join_s: float | None = None
) -> Generator[None]:
    """Call `beat` at intervals while the block runs, from a thread of its own.

    What `beat` raises is logged, and the next beat still comes.

    Args:
        interval_s: returns the seconds to wait for the next beat.
        join_s: how long to wait at the end for a beat that is still running; None: until it ends.
    """
    has_ended = threading.Event()

    def run() -> None:
        while not has_ended.wait(interval_s()):
            try:
                beat()
            except Exception:
                logger.exception("a heartbeat failed")

    # In the context of its caller, so that its log lines name the same job.
    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join(join_s)


class Presence:
    """Keeps a worker's row in the database up to date.

    The heartbeat comes from a thread of its own, whatever the worker is busy with. If it cannot be
    written, the worker continues without it, and the log says so once.

    Args:
        memory_bytes: memory of the machine that is for jobs. None if no job runs here.
        machine: its name. Not needed with an ability, which has it.
        ability: returns what the worker can do now.
        models_in_memory: returns ids of the base models that it has in memory.
        pace: is told with each heartbeat how many workers there are.
    """

    def __init__(
        self,
        worker: WorkerIdentity,
        database: Database,
        *,
        clock: Clock,
        is_stopping: Callable[[], bool],
        memory_bytes: int | None,
        machine: str | None = None,
        ability: Callable[[], Ability | None] = lambda: None,
        models_in_memory: Callable[[], Collection[str]] = tuple,
        pace: Pace | None = None,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._worker = worker
        self._database = database
        self._clock = clock
        self._is_stopping = is_stopping
        self._interval_s = interval_s
        self._memory_bytes = memory_bytes
        self._machine = machine
        self._ability = ability
        self._models_in_memory = models_in_memory
        self._pace = pace or Pace()
        self._is_failing = False

    @contextmanager
    def keep(self) -> Generator[None]:
        """Write the heartbeat while the block runs, then delete the row."""
        self._beat()
        try:
            with repeating(self._beat, interval_s=lambda: self._interval_s, join_s=_JOIN_S):
                yield
        finally:
            self._delete_row()

    def _delete_row(self) -> None:
        try:
            with self._database.writing() as session:
                WorkerRepository(session).remove([self._worker.worker_id])
        except Exception as error:
            logger.warning("the worker's row stays until a janitor deletes it: %s", error)

    def _beat(self) -> None:
        try:
            with self._database.writing() as session:
                workers = WorkerRepository(session)
                workers.beat(
                    self._worker,
                    now=self._clock(),
                    is_stopping=self._is_stopping(),
                    memory_bytes=self._memory_bytes,
                    machine=self._machine,
                    ability=self._ability(),
                    models_in_memory=self._models_in_memory(),
                )
                self._pace.crowd = workers.count_crowd(now=self._clock())
        except Exception as error:
            if not self._is_failing:
                logger.warning("the worker continues without its heartbeat: %s", error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.info("the worker's heartbeat is written again")
            self._is_failing = False
