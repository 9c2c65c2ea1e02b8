"""Every query on sweeps."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from app.core.db.base import Page, ProjectRepository
from app.core.db.check_tables import Sweep
from app.core.db.tables import Checkpoint, Job
from app.core.errors import NotFoundError
from app.core.job.status import JobStatus


@dataclass(frozen=True, slots=True)
class SweepJob:
    """What is shown of a job in its sweep, as in `Job`."""

    id: str
    sweep_id: str
    status: JobStatus
    finished_at: datetime | None
    base_model: str
    training_file_id: str
    validation_file_id: str | None
    fine_tuned_model: str
    trained_steps: int
    total_steps: int | None
    valid_loss: float | None
    metrics: dict[str, Any] | None
    """`metrics` of the checkpoint that is its result. None if there is none."""


_COLUMNS = (
    *(getattr(Job, field.name) for field in fields(SweepJob) if field.name != "metrics"),
    Checkpoint.metrics,
)
"""Those of `SweepJob`, in its order."""


class SweepRepository(ProjectRepository):
    def add(self, sweep: Sweep) -> None:
        self._add(sweep)

    def get(self, sweep_id: str) -> Sweep:
        """Return the sweep with this id.

        Raises:
            NotFoundError: no sweep has this id.
        """
        sweep = self._session.scalar(self._select(Sweep).where(Sweep.id == sweep_id))
        if sweep is None:
            raise NotFoundError(
                f"No such sweep: {sweep_id:.80}", code="sweep_not_found", param="sweep_id"
            )
        return sweep

    def list_page(self, *, after: str | None, limit: int) -> Page[Sweep]:
        """Return a page of sweeps, newest first."""
        return self._fetch_page(self._select(Sweep), Sweep.id, after=after, limit=limit)

    def list_jobs(self, sweep_ids: Iterable[str]) -> list[SweepJob]:
        """Return the jobs of some sweeps, oldest first."""
        jobs = self._select(Job).outerjoin(Checkpoint, Checkpoint.id == Job.result_checkpoint_id)
        of_sweeps = jobs.where(Job.sweep_id.in_(list(sweep_ids))).order_by(Job.id)
        rows = self._session.execute(of_sweeps.with_only_columns(*_COLUMNS))
        return [SweepJob(*row) for row in rows]

    def delete_if_empty(self, sweep_id: str) -> None:
        """Delete a sweep whose last job this transaction has deleted."""
        # Of two transactions that delete the last two jobs, the second waits here and sees none.
        sweep = self._select(Sweep).where(Sweep.id == sweep_id).with_only_columns(Sweep.id)
        self._session.execute(sweep.with_for_update())
        its_job = self._select(Job).where(Job.sweep_id == sweep_id).exists()
        self._session.execute(self._delete(Sweep).where(Sweep.id == sweep_id, ~its_job))
