"""Claim a job, make an attempt at it, ask again. No torch in this process.

A worker that finds no job to train checks the data of one.
"""

import logging
import math
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial

from app.core.abilities.ability import Ability
from app.core.clock import steady_s
from app.core.compute_choices import training_memory
from app.core.db.repositories.leases import Lease, LeaseRepository
from app.core.db.repositories.machines.claims import Claims
from app.core.db.repositories.machines.fitting import WarmModels
from app.core.disk import has_room
from app.core.errors import DatabaseAwayError, DatabaseBusyError, StoreAwayError
from app.core.logging import log_context
from app.core.machine.memory import Memory, measure_memory
from app.core.settings.store_urls import is_shared
from app.core.stored_models.reach import list_reachable
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.beside import IDLE_S, PAUSE_AFTER_FAILURE_S
from worker.data_check.loop import DataChecker
from worker.launch.locks import TrainingSlots
from worker.presence import Presence, this_worker

logger = logging.getLogger(__name__)

MAX_POLL_INTERVAL_S = 5.0
"""Interval at which an idle worker asks for a job where very many do: one may be the only worker
that can run a job."""

SAVING_SHARE = 0.8
"""Fraction of the grace period of a worker that is told to stop in which its child may save. The
rest is for storing what was saved."""


class Worker:
    """Runs jobs one at a time until told to stop.

    Args:
        do_chores: called between jobs; see `Janitor.run_if_due`.
        drained_s: returns when the machine was drained, by `steady_s`; None if it is not.
    """

    def __init__(
        self,
        worker_id: str,
        resources: Resources,
        do_chores: Callable[[], None],
        drained_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        settings = resources.settings
        self._worker_id = worker_id
        self._resources = resources
        self._settings = settings
        self._database = resources.database
        settings.workers_dir.mkdir(parents=True, exist_ok=True)
        self._preload_lock = settings.workers_dir / "preload.lock"
        self._slots = TrainingSlots(settings.workers_dir, settings.concurrency)
        self._do_chores = do_chores
        self._stopping = threading.Event()
        self._stop_at_s: float | None = None
        self._drained_s = drained_s
        self._warm = WarmModels()
        self._warm_until_s = 0.0
        self._memory_bytes = training_memory(settings)
        self._checker = DataChecker(worker_id, resources, resources.launcher)
        self._presence = Presence(
            this_worker(worker_id),
            resources.database,
            clock=resources.clock,
            is_stopping=lambda: self._must_leave_at_s() is not None,
            memory_bytes=self._memory_bytes,
            ability=self._read_ability,
            models_in_memory=self._list_warm_models,
            pace=resources.pace,
        )

    def is_checking(self) -> bool:
        """As `DataChecker.is_at_it`."""
        return self._checker.is_at_it()

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs. Save the present one, unless `at_once`, and put it back."""
        grace_s = 0.0 if at_once else self._settings.stop_grace_s * SAVING_SHARE
        self._stop_at_s = steady_s() + grace_s
        self._stopping.set()

    def run(self) -> None:
        with self._presence.keep():
            while not self._stopping.is_set():
                try:
                    idle_s = self.run_once()
                except (DatabaseAwayError, StoreAwayError) as error:
                    logger.warning("trying again: %s", error.for_operator)
                    idle_s = PAUSE_AFTER_FAILURE_S
                except DatabaseBusyError:
                    logger.warning("the database is busy; trying again")
                    idle_s = self._settings.poll_interval_s
                except Exception:  # its job, if any, is recovered once the lease has run out
                    logger.exception("the worker failed; trying again in a moment")
                    idle_s = PAUSE_AFTER_FAILURE_S
                self._stopping.wait(idle_s)

    def run_once(self) -> float:
        """Run or check at most one job. Returns seconds to wait before the next call."""
        self._do_chores()
        self._resources.doubts.settle(self._resources.store)
        if self._drained_s() is not None:
            return IDLE_S
        if not self._is_anything_waiting():
            # Without a slot: what runs beside training would take each look for a training.
            launcher = self._resources.launcher
            launcher.preload(self._preload_lock, is_busy=self._slots.is_any_taken)
            return self._idle_s()
        with self._slots.take() as may_train:
            lease = self._claim() if may_train and has_room(self._settings) else None
            if lease is not None:
                return self._attempt(lease)
            idle_s = self._checker.check_small(self._must_leave_at_s) if may_train else None
            return self._idle_s() if idle_s is None else idle_s

    def _idle_s(self) -> float:
        interval_s = self._settings.poll_interval_s
        return self._resources.pace.while_idle_s(interval_s, most_s=MAX_POLL_INTERVAL_S)

    def _is_anything_waiting(self) -> bool:
        """Whether there seems to be a job to train or to check. Keeps no writer waiting."""
        ability, memory = self._read_ability(), self._measure_memory()
        now = self._resources.clock()
        with self._database.reading() as session:
            if Claims(session, ability, memory).is_any(now=now):
                return True
        return self._checker.is_any_small()

    def _measure_memory(self) -> Memory:
        return measure_memory().limited_to(self._memory_bytes)

    def _claim(self) -> Lease | None:
        self._warm.base_models = self._list_warm_models()
        ability, memory = self._read_ability(), self._measure_memory()
        with self._database.writing() as session:
            return LeaseRepository(session).claim(
                self._worker_id,
                now=self._resources.clock(),
                lease_for=timedelta(seconds=self._settings.lease_s),
                threads=self._settings.resolved_training_threads,
                memory=memory,
                ability=ability,
                warm=self._warm,
            )

    def _read_ability(self) -> Ability | None:
        """What this worker can do, with the base models that it has or can fetch now."""
        ability = self._resources.ability
        if ability is None:
            return None
        catalogue, shared = self._resources.catalogue, is_shared(self._settings.store_url)
        find = partial(list_reachable, catalogue=catalogue, is_shared=shared)
        return ability.model_copy(update={"base_models": self._database.read(find)})

    def _list_warm_models(self) -> Collection[str]:
        """The base model of the last job, until its process lets go of it."""
        return self._warm.base_models if steady_s() < self._warm_until_s else ()

    def _must_leave_at_s(self) -> float | None:
        """When the present job must be left. A drained machine leaves it the time to save."""
        if self._stop_at_s is None and self._drained_s() is not None:
            return math.inf
        return self._stop_at_s

    def _attempt(self, lease: Lease) -> float:
        self._warm.base_models = (lease.base_model,)
        self._warm_until_s = math.inf if self._settings.warm_s else 0.0
        attempt = Attempt(lease, self._resources, stop_at_s=self._must_leave_at_s)
        job = {"job_id": lease.job_id, "attempt": lease.attempt, "project": lease.project_id}
        with log_context(**job):
            logger.info("job claimed")
            attempt.run()
        if self._settings.warm_s:
            self._warm_until_s = steady_s() + self._settings.warm_s
        return PAUSE_AFTER_FAILURE_S if attempt.must_wait else 0.0
