"""Finds tasks and does them, beside training and when nothing trains."""

import logging
from collections.abc import Callable
from datetime import timedelta

from app.core.db.repositories.tasks.leases import ClaimedTask, TaskQueue
from app.core.disk import has_room
from app.core.logging import log_context
from app.core.stored_models.reach import list_failed
from worker.attempt.lease_keeper import Resources
from worker.beside import PAUSE_AFTER_FAILURE_S
from worker.launch.launcher import Launcher
from worker.tasks.run import TaskRun

logger = logging.getLogger(__name__)


class TaskDoer:
    """Does one task after another.

    Args:
        worker_id: the worker that holds the leases.
        resources: what all attempts of the worker share.
        launcher: starts the children.
    """

    def __init__(self, worker_id: str, resources: Resources, launcher: Launcher) -> None:
        self._worker_id = worker_id
        self._resources = resources
        self._launcher = launcher

    def do_next(self, stop_at_s: Callable[[], float | None]) -> float | None:
        """Make one try at the next task.

        Args:
            stop_at_s: as in `TaskRun`.

        Returns:
            Seconds to wait before the next call. None if there was nothing to do.
        """
        task = self._claim()
        if task is None:
            return None
        run = TaskRun(task, self._resources, self._launcher, stop_at_s=stop_at_s)
        lease = task.lease
        with log_context(job_id=lease.job_id, task=task.id, project=lease.project_id):
            logger.info("task claimed")
            run.run()
        return PAUSE_AFTER_FAILURE_S if run.must_wait else 0.0

    def _claim(self) -> ClaimedTask | None:
        resources = self._resources
        resources.doubts.settle(resources.store)
        failed = list_failed(resources.catalogue)
        with resources.database.reading() as session:
            if not TaskQueue(session, failed).is_any(now=resources.clock()):
                return None  # without keeping writers waiting just to find nothing
        if not has_room(resources.settings):
            return None
        lease_for = timedelta(seconds=resources.settings.lease_s)
        with resources.database.writing() as session:
            return TaskQueue(session, failed).claim(
                self._worker_id, now=resources.clock(), lease_for=lease_for
            )
