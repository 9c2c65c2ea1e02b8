"""Claims jobs for the nodes of a Ray cluster that have room for them, and hands them over.

Jobs wait in the database and never in Ray: what Ray does not start within seconds goes back.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app.core.abilities.ability import Ability
from app.core.clock import steady_s
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.machines.claims import Claims
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.machines.placements import JobSize, Placements
from app.core.db.repositories.queue import QueueRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import WorkerIdentity, WorkerRepository
from app.core.errors import LeaseLostError
from app.core.ids import IdPrefix, new_id
from app.core.machine.memory import Memory
from app.core.storage.marker import read_marker
from worker.attempt.lease_keeper import TRANSIENT_ERRORS, LeaseKeeper, Resources
from worker.beside import BesideTraining
from worker.dispatch.attempt_launcher import AlreadyLaunchedError, Health, Place
from worker.dispatch.connection import RayAwayError, RayConnection
from worker.dispatch.ray_attempts import RayAttempts, RayHandle
from worker.presence import HEARTBEAT_INTERVAL_S, Presence, this_worker

logger = logging.getLogger(__name__)

PLACE_S = 30.0
"""Time in which an attempt must have begun on its node, in seconds. It takes about four."""

BENCH_S = 30.0
"""Time for which a node gets no job after it has not started one, in seconds."""

MAX_DEMAND = 64
"""Number of jobs for which the autoscaler is asked for nodes at once."""

DEMAND_INTERVAL_S = 10.0
"""Maximum interval at which demand is told again, in seconds. A new head knows nothing of it, and
Ray keeps that of a dispatcher that has died."""

AWAY_S = 2.0
"""Pause after Ray could not be asked, in seconds."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster that can run jobs, and what is free on it."""

    id: str
    address: str
    cpus: int
    memory_bytes: int
    gpus: int
    ability: Ability

    def without(self, place: Place) -> "Node":
        """The node when this place is taken."""
        return Node(
            self.id,
            self.address,
            self.cpus - place.threads,
            self.memory_bytes - place.memory_bytes,
            self.gpus - place.gpus,
            self.ability,
        )

    def threads_for(self, lease: Lease) -> int:
        """CPU threads of the job on this node, which keeps those of its plan."""
        is_planned = lease.plan is not None and not lease.is_replanned
        return lease.plan.threads if lease.plan and is_planned else self.ability.threads

    @property
    def has_room(self) -> bool:
        """Whether it has the processors of a new job, and a GPU if its jobs use one."""
        needs_gpu = self.ability.gpu is not None
        return self.cpus >= self.ability.threads and (self.gpus >= 1 or not needs_gpu)


@dataclass(frozen=True, slots=True)
class Launched:
    """An attempt that its node has not taken over yet."""

    keeper: LeaseKeeper
    place: Place
    handle: RayHandle
    due_s: float
    """When it must have been taken over, by `steady_s`."""


class Dispatcher:
    """Looks after the queue for a cluster. Several may do so for one queue and one cluster.

    What it has handed over goes on without it.
    """

    def __init__(self, worker_id: str, resources: Resources, connection: RayConnection) -> None:
        self._loop = BesideTraining(self.dispatch)
        self._is_stopping = threading.Event()
        self._presence = Presence(
            this_worker(worker_id),
            resources.database,
            clock=resources.clock,
            is_stopping=self._is_stopping.is_set,
            memory_bytes=None,  # jobs do not run here, so it limits none
        )
        self._resources = resources
        self._settings = resources.settings
        self._database = resources.database
        self._connection = connection
        self._attempts = RayAttempts(connection)
        self._launched: list[Launched] = []
        self._benched_s: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._shown: set[str] = set()
        self._show_at_s = 0.0
        self._demand: list[dict[str, float]] = []
        self._demand_at_s = 0.0
        self._is_away = False

    def stop(self, *, at_once: bool = False) -> None:
        """Claim no more jobs. Those that run in the cluster are left alone."""
        self._is_stopping.set()
        self._loop.stop(at_once=at_once)

    def run(self) -> None:
        with self._presence.keep():
            self._loop.run()
        self._connection.close()

    def dispatch(self, stop_at_s: Callable[[], float | None]) -> float | None:
        """Do what is due. Returns seconds to wait before the next call."""
        try:
            self._follow_launched()
            self._tell_demand()
            nodes = self._list_nodes()
            self._show(nodes)
            if stop_at_s() is None:
                self._fill(nodes)
        except RayAwayError as error:
            if not self._is_away:
                logger.warning("Ray cannot be asked; trying again: %s", error)
            self._is_away = True
            return AWAY_S
        if self._is_away:
            logger.info("Ray answers again", extra={"session": self._connection.session})
        self._is_away = False
        return self._settings.poll_interval_s

    def _list_nodes(self) -> list[Node]:
        """The nodes that can run jobs, less what was launched there a moment ago."""
        nodes = [self._read_node(node) for node in self._connection.ask("nodes")]
        usable = {node.id: node for node in nodes if node is not None}
        for launched in self._launched:
            node = usable.get(launched.place.node)
            if node is not None:  # Ray may count it already; then there is room again in a moment
                usable[node.id] = node.without(launched.place)
        return list(usable.values())

    def _read_node(self, found: Mapping[str, Any]) -> Node | None:
        node = dict(found)
        problem, ability = node.pop("problem"), node.pop("ability")
        if problem != self._problems.get(node["id"], ""):
            self._problems[node["id"]] = problem
            logger.warning("a node cannot run jobs: %s", problem, extra={"node": node["address"]})
        if ability is None:
            return None
        return Node(**node, ability=Ability.model_validate_json(ability))

    def _show(self, nodes: list[Node]) -> None:
        """Keep a row in the table of workers for each node, as what it can do decides who waits."""
        now_s = steady_s()
        if now_s < self._show_at_s:
            return
        self._show_at_s = now_s + HEARTBEAT_INTERVAL_S
        rows = {f"worker-ray-{node.ability.machine}": node for node in nodes}
        expecting = {launched.place.node for launched in self._launched}
        try:
            with self._database.writing() as session:
                workers, drained = WorkerRepository(session), Drains(session).list_all()
                workers.remove(self._shown - rows.keys())
                for worker_id, node in rows.items():
                    ability = node.ability
                    workers.beat(
                        WorkerIdentity(worker_id, f"ray {ability.machine}", 0, 0),
                        now=self._resources.clock(),
                        is_stopping=ability.machine in drained and node.id not in expecting,
                        ability=ability,
                    )
        except Exception as error:  # such as another dispatcher that registers the same node
            logger.info("the nodes are registered later: %s", error)
        else:
            self._shown = set(rows)

    def _fill(self, nodes: list[Node]) -> None:
        """Claim jobs for every node until it has no room, or no job fits it."""
        for node in nodes:
            while node.has_room and self._benched_s.get(node.id, 0) <= steady_s():
                lease = self._claim(node)
                if lease is None:
                    break
                gpus = int(node.ability.gpu is not None)
                place = Place(node.threads_for(lease), lease.memory_bytes or 0, gpus, node.id)
                self._launch(lease, place)
                node = node.without(place)  # noqa: PLW2901

    def _claim(self, node: Node) -> Lease | None:
        """Claim a job that fits what is free on the node.

        Raises:
            StoreAwayError: there is one, but the store does not answer.
        """
        ability = node.ability.model_copy(update={"cores": node.cpus})
        memory = Memory(node.memory_bytes, node.memory_bytes)
        with self._database.reading() as session:
            if not Claims(session, ability, memory).is_any(now=self._resources.clock()):
                return None  # without keeping writers waiting just to find nothing
        read_marker(self._resources.store)  # no attempt tells a dispatcher that the store is away
        with self._database.writing() as session:
            return LeaseRepository(session).claim(
                new_id(IdPrefix.WORKER),
                now=self._resources.clock(),
                lease_for=timedelta(seconds=self._settings.lease_s),
                threads=ability.threads,
                memory=memory,
                ability=ability,
            )

    def _launch(self, lease: Lease, place: Place) -> None:
        keeper = LeaseKeeper(lease, self._resources, lambda: None)
        context = {"job_id": lease.job_id, "attempt": lease.attempt, "node": place.node}
        try:
            handle = self._attempts.launch(lease, place)
        except AlreadyLaunchedError:
            logger.warning("attempt launched already", extra=context)
            self._put_back(keeper, place)
        except RayAwayError:  # if there is an actor nevertheless, it finds the lease lost
            self._put_back(keeper, place)
            raise
        else:
            logger.info("job given to Ray", extra=context)
            self._launched.append(Launched(keeper, place, handle, steady_s() + PLACE_S))

    def _follow_launched(self) -> None:
        """See which attempts have been taken over, and put back those that have not, in time."""
        for launched in list(self._launched):
            try:
                is_over = self._follow(launched)
            except LeaseLostError:
                self._attempts.release(launched.handle)
                is_over = True
            except TRANSIENT_ERRORS:
                is_over = False
            if is_over:
                self._launched.remove(launched)

    def _follow(self, launched: Launched) -> bool:
        """Whether this dispatcher is done with the attempt."""
        if launched.keeper.read(
            lambda session: Placements(session).is_taken_over(launched.keeper.lease)
        ):
            return True
        launched.keeper.poll()  # renews the lease
        if self._attempts.check(launched.handle) is not Health.GONE and steady_s() < launched.due_s:
            return False
        self._attempts.release(launched.handle)
        self._put_back(launched.keeper, launched.place)
        return True

    def _put_back(self, keeper: LeaseKeeper, place: Place) -> None:
        """Queue a job again that its node has not begun. Nothing is counted against the job."""
        self._benched_s[place.node] = steady_s() + BENCH_S
        why = "Ray did not start the attempt"
        keeper.transact(
            lambda session: RecoveryRepository(session).release(
                keeper.lease, why, now=self._resources.clock()
            )
        )

    def _tell_demand(self) -> None:
        """Tell Ray's autoscaler how large the cluster must be for all that runs and waits."""
        with self._database.reading() as session:
            is_any = QueueRepository(session).count() > 0
            sizes = Placements(session).list_sizes(limit=MAX_DEMAND) if is_any else ()
        demand = [self._bundle(size) for size in sizes]
        now_s = steady_s()
        if demand != self._demand or now_s >= self._demand_at_s:
            self._connection.ask("demand", bundles=demand)
            self._demand, self._demand_at_s = demand, now_s + DEMAND_INTERVAL_S

    def _bundle(self, size: JobSize) -> dict[str, float]:
        threads = size.threads or self._settings.resolved_training_threads
        gpus = {"GPU": 1.0} if self._settings.training_device == "cuda" else {}
        return {"CPU": float(threads), "memory": float(size.memory_bytes), **gpus}
