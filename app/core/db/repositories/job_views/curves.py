"""The loss log of a job as a curve of few points that keeps the peaks."""

from sqlalchemy import BigInteger, ColumnElement, exists, literal, select
from sqlalchemy.orm import InstrumentedAttribute

from app.core.db.base import ProjectRepository
from app.core.db.tables import Job, StepRow
from app.core.job.loss_log import MAX_STEP, StepMetrics

_Loss = InstrumentedAttribute[float | None]


class CurveRepository(ProjectRepository):
    """The curves of one project's jobs."""

    def list_points(
        self, job_id: str, *, first: int, last: int | None, points: int
    ) -> list[StepMetrics]:
        """Return at most `points` rows of the loss log, which stand for all of them.

        They are the first and the last row, every row with a validation loss, and the rows with the
        lowest and the highest training loss of each of many equal ranges. If rows with a validation
        loss would be more than half of the points, they too are the extremes of equal ranges.

        Args:
            job_id: the job.
            first: first step of the part that is shown.
            last: last step of it; None for the newest.
            points: maximum number of rows, at least 2.
        """
        ends = self._find_ends(job_id, first, MAX_STEP if last is None else last)
        if ends is None:
            return []
        oldest, newest = ends
        if newest - oldest < points:
            return self._read(job_id, StepRow.step.between(oldest, newest))
        inner, free = (oldest + 1, newest - 1), points - len(ends)
        evaluated = self._list_evaluated(job_id, *inner, at_most=free // 2)
        ranges = (free - len(evaluated)) // 2
        peaks = self._find_extremes(job_id, StepRow.train_loss, *inner, ranges=ranges)
        return self._read(job_id, StepRow.step.in_({*ends, *evaluated, *peaks}))

    def _find_ends(self, job_id: str, first: int, last: int) -> tuple[int, int] | None:
        """The first and the last step that are there; None if there is none."""
        within = select(StepRow.step).where(
            StepRow.job_id == job_id, self._owns(job_id), StepRow.step.between(first, last)
        )
        oldest = self._session.scalar(within.order_by(StepRow.step).limit(1))
        newest = self._session.scalar(within.order_by(StepRow.step.desc()).limit(1))
        return None if oldest is None or newest is None else (oldest, newest)

    def _list_evaluated(self, job_id: str, first: int, last: int, *, at_most: int) -> list[int]:
        """Steps with a validation loss: all of them, or the extremes where there are more."""
        evaluated = (
            select(StepRow.step)
            .where(StepRow.job_id == job_id, self._owns(job_id))
            .where(StepRow.step.between(first, last), StepRow.valid_loss.is_not(None))
            .order_by(StepRow.step)
            .limit(at_most + 1)
        )
        steps = list(self._session.scalars(evaluated))
        if len(steps) <= at_most:
            return steps
        return self._find_extremes(job_id, StepRow.valid_loss, first, last, ranges=at_most // 2)

    def _find_extremes(
        self, job_id: str, loss: _Loss, first: int, last: int, *, ranges: int
    ) -> list[int]:
        """Steps with the lowest and the highest loss in each of at most so many equal ranges.

        One query looks at every row twice and keeps none of them in memory.
        """
        if ranges < 1:
            return []
        width = literal(-(-(last - first + 1) // ranges), BigInteger)
        starts = select(literal(first, BigInteger).label("start")).cte(recursive=True)
        following = starts.c.start + width
        starts = starts.union_all(select(following).where(following <= last))

        def step_of_first(by: ColumnElement[float | None]) -> ColumnElement[int]:
            start = starts.c.start
            is_within = (StepRow.step >= start, StepRow.step < start + width, StepRow.step <= last)
            rows = select(StepRow.step).where(StepRow.job_id == job_id, *is_within)
            best = rows.where(loss.is_not(None)).order_by(by, StepRow.step).limit(1)
            return best.correlate(starts).scalar_subquery()

        extremes = select(step_of_first(loss.asc()), step_of_first(loss.desc()))
        found = self._session.execute(extremes.select_from(starts).where(self._owns(job_id)))
        return [step for pair in found for step in pair if step is not None]

    def _read(self, job_id: str, which: ColumnElement[bool]) -> list[StepMetrics]:
        of_job = select(StepRow.metrics).where(StepRow.job_id == job_id, self._owns(job_id))
        rows = self._session.scalars(of_job.where(which).order_by(StepRow.step))
        return [StepMetrics.model_validate(row) for row in rows]

    def _owns(self, job_id: str) -> ColumnElement[bool]:
        """Whether the project has this job: rows of the loss log name only their job."""
        return exists().where(Job.id == job_id, Job.project_id == self._project_id)
