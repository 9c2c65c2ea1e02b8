"""A fleet of simulated machines over the real repositories, on a clock that jumps.

A discrete-event simulation: it does what is due next, at the time when it is due. Claims, renewals,
steps, ends, heartbeats and rescues are the real code on a real database. Training and waiting take
no time. Machines die without a word, and others join.
"""

import heapq
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.machines.claims import Claims
from app.core.db.repositories.workers import WorkerIdentity, WorkerRepository
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.errors import LeaseLostError
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.machine.memory import Memory
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from benchmarks.scheduling.plans import MACHINES, Machine, Outcome, Plan, Worker
from benchmarks.scheduling.queues import START, Tenant, ability_with, duration_s
from worker.attempt.lease_keeper import RENEWALS
from worker.janitor import INTERVAL_S, Janitor


class Fleet:
    """Runs one simulation.

    Args:
        database: has the queue.
        waiting: number of queued jobs by project, which the simulation keeps up to date.
    """

    def __init__(
        self, database: Database, plan: Plan, waiting: Counter[str], data_dir: Path
    ) -> None:
        self.outcome = Outcome()
        self._database = database
        self._plan = plan
        self._waiting = waiting
        self._apart: set[str] = set()
        self._random = random.Random(plan.seed)  # noqa: S311
        self._now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._running: Counter[str] = Counter()
        self._machines: list[Machine] = []
        self._names = itertools.count(1)
        self._holders: dict[str, Worker] = {}
        # Training in the newest saved state of each job.
        self._saved_s: defaultdict[str, float] = defaultdict(float)
        settings = Settings(_env_file=None, data_dir=data_dir)  # pyright: ignore[reportCallIssue]
        store = LocalBlobStore(settings.blobs_dir)
        self._janitor = Janitor(settings, database=database, store=store, clock=self.now)

    def now(self) -> datetime:
        """The virtual time."""
        return START + timedelta(seconds=self._now_s)

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Do something at a virtual time, in seconds after the beginning."""
        heapq.heappush(self._due, (when_s, next(self._order), act))

    def set_apart(self, project_id: str) -> None:
        """Leave a project out of `Outcome.worst_gap`: it has a limit, or comes late."""
        self._apart.add(project_id)

    def arrive(self, tenant: Tenant, add: Callable[[], None]) -> None:
        """Add a project with its queued jobs now."""
        add()
        self.set_apart(tenant.project_id)
        self._waiting[tenant.project_id] += tenant.jobs
        self.outcome.arrived_s[tenant.project_id] = self._now_s

    def run(self) -> Outcome:
        plan = self._plan
        for number in range(plan.workers // plan.workers_each):
            self._join(MACHINES[number % len(MACHINES)])
        self.at(INTERVAL_S, self._rescue)
        stop_s = time.monotonic() + 60 * plan.minutes
        while self._due and not self._is_over() and time.monotonic() < stop_s:
            self._now_s, _, act = heapq.heappop(self._due)
            act()
        self._finish()
        return self.outcome

    def _is_over(self) -> bool:
        ended = len(self.outcome.ended)
        if self._plan.ends is not None and ended >= self._plan.ends:
            return True
        return not self._holders and not sum(self._waiting.values())

    # Machines

    def _join(self, memory_bytes: int) -> None:
        machine = Machine(self._now_s)
        self._machines.append(machine)
        share = Memory(total=memory_bytes, free=memory_bytes)
        for _ in range(self._plan.workers_each):
            name = f"worker-{next(self._names):026}"
            identity = WorkerIdentity(name, f"host {name}", 1, 1)
            machine.workers.append(Worker(identity, share, machine))
        for worker in machine.workers:
            self._beat(worker)
            # Nobody starts a thousand workers within one millisecond.
            self.at(self._now_s + self._random.uniform(0, 10), lambda one=worker: self._ask(one))
        dies_s = self._now_s + self._random.expovariate(1 / self._plan.lives_s)
        self.at(dies_s, lambda: self._die(machine, memory_bytes))

    def _die(self, machine: Machine, memory_bytes: int) -> None:
        machine.died_s = self._now_s
        self.outcome.deaths += 1
        for worker in machine.workers:
            if worker.lease is not None:
                trained_s = self._now_s - worker.began_s
                saved_s = trained_s // self._plan.save_s * self._plan.save_s
                self._saved_s[worker.lease.job_id] += saved_s
                self.outcome.useful_s += saved_s
                self.outcome.lost_s += trained_s - saved_s
                self.outcome.last_loss_s = self._now_s
            self._stop_idling(worker)
        back_s = self._now_s + self._random.expovariate(1 / self._plan.away_s)
        self.at(back_s, lambda: self._join(memory_bytes))

    def _beat(self, worker: Worker) -> None:
        if not worker.machine.is_alive:
            return
        with self._database.writing() as session:
            total = worker.memory.total
            WorkerRepository(session).beat(
                worker.identity, now=self.now(), memory_bytes=total, ability=ability_with(total)
            )
        self.at(self._now_s + self._plan.heartbeat_s, lambda: self._beat(worker))

    # Jobs

    def _ask(self, worker: Worker) -> None:
        """What `worker.loop` does: look whether there is a job, then claim it."""
        if not worker.machine.is_alive:
            return
        lease = self._claim(worker)
        if lease is None:
            self.outcome.polls += 1
            self.outcome.missed += bool(self._list_unlimited())
            if worker.idle_since_s is None:
                worker.idle_since_s = self._now_s
            pause_s = self._plan.poll_s * self._random.uniform(0.5, 1.5)
            self.at(self._now_s + pause_s, lambda: self._ask(worker))
            return
        self._stop_idling(worker)
        worker.lease, worker.began_s = lease, self._now_s
        self._note_start(worker, lease)
        left_s = duration_s(lease.job_id, self._plan.seed) - self._saved_s[lease.job_id]
        self.at(self._now_s + max(0.0, left_s), lambda: self._end(worker, lease))
        self._renew_later(worker, lease)

    def _claim(self, worker: Worker) -> Lease | None:
        ability = ability_with(worker.memory.total)
        with self._database.reading() as session:
            claims = Claims(session, ability, worker.memory)
            if not claims.is_any(now=self.now()):
                return None
        with self._database.writing() as session:
            return LeaseRepository(session).claim(
                worker.identity.worker_id,
                now=self.now(),
                lease_for=timedelta(seconds=self._plan.lease_s),
                memory=worker.memory,
                ability=ability,
            )

    def _renew_later(self, worker: Worker, lease: Lease) -> None:
        due_s = self._now_s + self._plan.lease_s / RENEWALS
        self.at(due_s, lambda: self._renew(worker, lease))

    def _renew(self, worker: Worker, lease: Lease) -> None:
        if not worker.machine.is_alive or worker.lease is not lease:
            return
        until = self.now() + timedelta(seconds=self._plan.lease_s)
        trained_s = int(self._now_s - worker.began_s)
        row = StepMetrics(
            step=trained_s, epoch=0.1, train_loss=1.0, learning_rate=1e-4,
            tokens_seen=trained_s, elapsed_s=float(trained_s), grad_norm=1.0,
            train_mean_token_accuracy=0.5,
        )  # fmt: skip

        def renew(session: Session) -> None:
            LeaseRepository(session).renew(lease, until=until)

        def record(session: Session) -> None:
            LeaseRepository(session).record_steps(
                lease, [row], tokens_per_second=1.0, estimated_finish_at=None
            )

        self._database.transact(renew)
        self._database.transact(record)
        self._renew_later(worker, lease)

    def _end(self, worker: Worker, lease: Lease) -> None:
        if not worker.machine.is_alive or worker.lease is not lease:
            return
        worker.lease = None
        try:
            with self._database.writing() as session:
                LeaseRepository(session).finish(lease, JobStatus.SUCCEEDED, now=self.now())
        except LeaseLostError:
            self.outcome.lost_s += self._now_s - worker.began_s
        else:
            self.outcome.ended[lease.job_id] += 1
            self.outcome.useful_s += self._now_s - worker.began_s
            self._running[lease.project_id] -= 1
            del self._holders[lease.job_id]
        self._ask(worker)

    def _rescue(self) -> None:
        """What some janitor of the fleet does every two seconds, if a lease may have run out."""
        oldest = timedelta(seconds=self._plan.lease_s)
        if any(not one.machine.is_alive for one in self._holders.values()):
            self._janitor.rescue_jobs()
            self._note_rescued()
        self.at(self._now_s + max(INTERVAL_S, oldest.total_seconds() / 60), self._rescue)

    # What is found

    def _note_rescued(self) -> None:
        """Find out which jobs are queued again."""
        with self._database.reading() as session:
            running = set(session.scalars(select(Job.id).where(Job.status == JobStatus.RUNNING)))
        for job_id in self._holders.keys() - running:
            worker = self._holders.pop(job_id)
            assert worker.lease is not None
            assert not worker.machine.is_alive, "a living worker has lost its job"
            self._running[worker.lease.project_id] -= 1
            self._waiting[worker.lease.project_id] += 1
            worker.lease = None
            self.outcome.rescued += 1

    def _note_start(self, worker: Worker, lease: Lease) -> None:
        found, project_id = self.outcome, lease.project_id
        assert lease.job_id not in self._holders, "two workers have one job"
        assert lease.job_id not in found.ended, "a job that has ended was claimed"
        self._holders[lease.job_id] = worker
        found.claims += 1
        found.first_start_s.setdefault(project_id, self._now_s)
        found.last_start_s[project_id] = self._now_s
        found.emptied_s = self._now_s
        self._running[project_id] += 1
        self._waiting[project_id] -= 1
        most = max(found.most_running[project_id], self._running[project_id])
        found.most_running[project_id] = most
        compared = [self._running[one] for one in self._list_unlimited()]
        if compared:
            found.worst_gap = max(found.worst_gap, max(compared) - min(compared))

    def _list_unlimited(self) -> list[str]:
        """The projects that wait and are not set apart."""
        return [one for one, jobs in self._waiting.items() if jobs and one not in self._apart]

    def _stop_idling(self, worker: Worker) -> None:
        if worker.idle_since_s is not None:
            self.outcome.idle_s += self._now_s - worker.idle_since_s
            worker.idle_since_s = None

    def _finish(self) -> None:
        found = self.outcome
        found.lasted_s = self._now_s
        for machine in filter(lambda one: one.is_alive, self._machines):
            for worker in machine.workers:
                self._stop_idling(worker)
                if worker.lease is not None:
                    found.useful_s += self._now_s - worker.began_s
        found.capacity_s = self._capacity_s(found.lasted_s)
        found.ideal_s = self._time_for(found.useful_s)
        found.busy_s = self._time_for(found.useful_s + found.lost_s)

    def _time_for(self, work_s: float) -> float:
        """When the workers would have worked so long in all, to within a second."""
        early_s, late_s = 0.0, self.outcome.lasted_s
        while late_s - early_s > 1:
            middle_s = (early_s + late_s) / 2
            is_enough = self._capacity_s(middle_s) >= work_s
            early_s, late_s = (early_s, middle_s) if is_enough else (middle_s, late_s)
        return late_s

    def _capacity_s(self, until_s: float) -> float:
        return sum(machine.capacity_s(until_s) for machine in self._machines)
