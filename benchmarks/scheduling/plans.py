"""What a fleet is to do, and what came of it."""

import math
from collections import Counter
from dataclasses import dataclass, field

from app.core.db.repositories.leases import Lease
from app.core.db.repositories.workers import WorkerIdentity
from app.core.machine.memory import Memory
from benchmarks.scheduling.queues import GB


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated.

    Leases and heartbeats are longer than by default, so that most of the time goes to claims.

    A machine that dies loses what its jobs have trained since their state was last saved.
    """

    workers: int
    seed: int = 1
    ends: int | None = None
    """Jobs after whose end the simulation stops; None: when none is left."""
    minutes: float = math.inf
    """Real time after which it stops."""
    lease_s: float = 3600.0
    heartbeat_s: float = 1800.0
    save_s: float = 120.0
    poll_s: float = 30.0
    workers_each: int = 4
    """Workers of one machine."""
    lives_s: float = 6 * 3600.0
    """Mean time until a machine dies."""
    away_s: float = 900.0
    """Mean time until another one joins."""


MACHINES = (
    16 * GB,
    64 * GB,
    16 * GB,
    32 * GB,
    16 * GB,
    32 * GB,
    64 * GB,
    16 * GB,
    32 * GB,
    16 * GB,
)
"""Memory of each of ten machines, in bytes: half of them cannot train every job."""


@dataclass
class Outcome:
    """What came of a simulation, in virtual time."""

    ended: Counter[str] = field(default_factory=Counter[str])
    """How often each job has ended."""
    lasted_s: float = 0.0
    useful_s: float = 0.0
    """Training that was of use, up to the saved states of jobs that have lost their worker."""
    lost_s: float = 0.0
    """Training that died with its machine."""
    idle_s: float = 0.0
    """Time of workers that had found no job."""
    capacity_s: float = 0.0
    """Time of all workers while they lived."""
    deaths: int = 0
    """Machines that died."""
    rescued: int = 0
    claims: int = 0
    polls: int = 0
    """Times that a worker asked for a job and there was none for it."""
    missed: int = 0
    """Those of them when a project without a limit had a job waiting, perhaps too large for it."""
    worst_gap: int = 0
    """Largest difference between the running jobs of two projects that both had jobs waiting."""
    most_running: Counter[str] = field(default_factory=Counter[str])
    """Largest number of jobs of each project that ran at once."""
    first_start_s: dict[str, float] = field(default_factory=dict[str, float])
    """When the first job of each project began."""
    last_start_s: dict[str, float] = field(default_factory=dict[str, float])
    """When the job of each project that began last did so."""
    arrived_s: dict[str, float] = field(default_factory=dict[str, float])
    emptied_s: float = 0.0
    """When the last waiting job began."""
    last_loss_s: float = 0.0
    """When a machine that trained a job died last."""
    ideal_s: float = 0.0
    """When the same machines would have done the same work without pause and without loss."""
    busy_s: float = 0.0
    """When they would have done it without pause, but with the same loss."""


@dataclass(eq=False)
class Worker:
    """A simulated worker, and the job that it trains."""

    identity: WorkerIdentity
    memory: Memory
    machine: "Machine"
    lease: Lease | None = None
    began_s: float = 0.0
    idle_since_s: float | None = None


@dataclass(eq=False)
class Machine:
    """A simulated machine, which lives until it dies."""

    joined_s: float
    died_s: float = math.inf
    workers: list[Worker] = field(default_factory=list[Worker])

    @property
    def is_alive(self) -> bool:
        return self.died_s == math.inf

    def capacity_s(self, until_s: float) -> float:
        """Time of all its workers until then."""
        lived_s = min(self.died_s, until_s) - self.joined_s
        return max(0.0, lived_s) * len(self.workers)
