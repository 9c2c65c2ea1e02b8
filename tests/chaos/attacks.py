"""Ways to hurt a running service, one blow at a time."""

import os
import random
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import select

from app.core.db.session import Database
from app.core.db.tables import Job
from tests.children import find_children
from tunery.local_service import LocalService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tunery.logged_process import LoggedProcess


class Fleet(Protocol):
    """The processes of a service, perhaps on several machines."""

    processes: "Mapping[str, LoggedProcess]"
    worker_names: "Sequence[str]"

    def find_children(self) -> "Mapping[str, int]":
        """Process id of every training child, by the id of its job."""
        ...


class OneMachine:
    """A service that runs on one machine."""

    def __init__(self, service: LocalService) -> None:
        self.processes = service.processes
        self.worker_names = service.worker_names
        self._data_dir = service.data_dir

    def find_children(self) -> "Mapping[str, int]":
        return find_children(self._data_dir)


class Attacks:
    """Each method strikes once, if there is something to strike, and counts it.

    Args:
        grace_s: the workers' `stop_grace_s`.
        lease_s: the workers' lease: a frozen one sleeps for longer.
    """

    def __init__(
        self,
        service: LocalService | Fleet,
        database: Database,
        *,
        chance: random.Random,
        grace_s: float,
        lease_s: float,
    ) -> None:
        self._service = OneMachine(service) if isinstance(service, LocalService) else service
        self._database = database
        self._chance = chance
        self._grace_s = grace_s
        self._lease_s = lease_s
        self._struck: dict[str, int] = {}
        """The attempt of each job whose child was killed last."""
        self._frozen: dict[str, threading.Timer] = {}
        self.counts: Counter[str] = Counter()
        self.slowest_end_s = 0.0

    @property
    def blows(self) -> int:
        return self.counts.total()

    @property
    def is_anybody_frozen(self) -> bool:
        return bool(self._frozen)

    def kill(self) -> None:
        """SIGKILL a child, a worker or the API."""
        kinds: list[Callable[[], None]] = [self.kill_child, self.kill_worker, self.kill_api]
        self._chance.choices(kinds, weights=[8, 3, 1])[0]()

    def kill_training(self) -> None:
        """SIGKILL a child or a worker."""
        self._chance.choice([self.kill_child, self.kill_worker])()

    def freeze(self) -> None:
        """SIGSTOP a worker for longer than its lease, then let it go on."""
        awake = [
            name
            for name in self._service.worker_names
            if name not in self._frozen and self._service.processes[name].is_running
        ]
        if len(awake) < 2:  # somebody must take the jobs over
            return
        name = self._chance.choice(awake)
        self._service.processes[name].send(signal.SIGSTOP)
        sleep_s = self._lease_s * self._chance.uniform(1.1, 2.0)
        timer = threading.Timer(sleep_s, self._thaw, [name])
        self._frozen[name] = timer
        timer.start()
        self.counts["worker frozen"] += 1

    def terminate(self) -> None:
        """SIGTERM a worker, and wait for its end."""
        name = self._chance.choice(self._service.worker_names)
        worker = self._service.processes[name]
        if worker.is_running:
            began = time.monotonic()
            code = worker.stop(within_s=self._grace_s + 5)
            # 0, or by the signal itself while it was still starting.
            assert code in {0, -signal.SIGTERM}, f"{name} ended with {code}"
            self.slowest_end_s = max(self.slowest_end_s, time.monotonic() - began)
            self.counts["worker told to stop"] += 1

    def end(self) -> None:
        """Let everybody go on."""
        for timer in list(self._frozen.values()):
            timer.join()

    def _thaw(self, name: str) -> None:
        self._service.processes[name].send(signal.SIGCONT)
        del self._frozen[name]

    def kill_child(self) -> None:
        """SIGKILL a child, but none whose job has made no progress since: that would be its end."""
        children = self._service.find_children()
        with self._database.reading() as session:
            rows = session.scalars(select(Job).where(Job.id.in_(children)))
            candidates = sorted(
                (job.id, job.attempt)
                for job in rows
                if job.crashes == 0 and job.attempt > self._struck.get(job.id, 0)
            )
        if not candidates:
            return
        job_id, attempt = self._chance.choice(candidates)
        try:
            os.kill(children[job_id], signal.SIGKILL)
        except ProcessLookupError:
            return
        self._struck[job_id] = attempt
        self.counts["child killed"] += 1

    def kill_worker(self) -> None:
        """SIGKILL a worker."""
        self._kill(self._chance.choice(self._service.worker_names), "worker killed")

    def kill_api(self) -> None:
        """SIGKILL the API."""
        self._kill("api", "API killed")

    def _kill(self, name: str, what: str) -> None:
        process = self._service.processes[name]
        if process.is_running:
            process.stop(signal.SIGKILL)
            self.counts[what] += 1
