"""What happened to jobs: events, which tell the user, and the changes that streams follow."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, exists, func, select

from app.core.db.base import Page, ProjectRepository
from app.core.db.tables import Event, Job, StepRow
from app.core.errors import NotFoundError
from app.core.ids import IdPrefix, new_id
from app.core.job.loss_log import StepMetrics

Level = Literal["info", "warn", "error"]


class EventRepository(ProjectRepository):
    def add(self, job_id: str, message: str, *, now: datetime, level: Level = "info") -> None:
        """Add an event that tells the user something."""
        number = self._reserve_numbers(job_id, 1)
        self._insert(job_id, number, message, now=now, level=level)

    def add_metrics(
        self, job_id: str, rows: Sequence[StepMetrics], *, total_steps: int, now: datetime
    ) -> None:
        """Add an event with the metrics of each step, with OpenAI's text and keys."""
        if not rows:
            return
        first = self._reserve_numbers(job_id, len(rows))
        for number, row in enumerate(rows, start=first):
            data = _metrics_data(row, total_steps)
            message = f"Step {row.step}/{total_steps}: {', '.join(_losses(row))}"
            self._insert(job_id, number, message, now=now, data=data)

    def list_page(self, job_id: str, *, after: str | None, limit: int) -> Page[Event]:
        """Return a page of events, newest first."""
        query = self._select(Event).where(Event.job_id == job_id)
        return self._fetch_page(query, Event.id, after=after, limit=limit)

    def list_after(self, job_id: str, number: int, *, limit: int) -> Sequence[Event]:
        """Return the events after the one with this number, oldest first."""
        query = self._select(Event).where(Event.job_id == job_id, Event.number > number)
        return self._session.scalars(query.order_by(Event.number).limit(limit)).all()

    def _reserve_numbers(self, job_id: str, count: int) -> int:
        """Return the number of the first of `count` new events.

        This locks the row of the job until the commit, so that events are committed in the order of
        their numbers. A reader that has seen a number has seen all below it.
        """
        numbering = (
            self._update(Job)
            .where(Job.id == job_id)
            .values(event_count=Job.event_count + count)
            .returning(Job.event_count)
        )
        last = self._session.execute(
            numbering, execution_options={"synchronize_session": False}
        ).scalar_one_or_none()
        if last is None:
            raise no_such_job(job_id)
        return last - count + 1

    def _insert(
        self,
        job_id: str,
        number: int,
        message: str,
        *,
        now: datetime,
        level: Level = "info",
        data: dict[str, Any] | None = None,
    ) -> None:
        self._session.add(
            Event(
                id=new_id(IdPrefix.EVENT),
                project_id=self._project_id,
                job_id=job_id,
                number=number,
                created_at=now,
                level=level,
                type="message" if data is None else "metrics",
                message=message,
                data=data,
            )
        )


class LoggedStep(NamedTuple):
    """A row of the loss log, and the attempt that wrote it."""

    attempt: int
    metrics: StepMetrics


class ChangeRepository(ProjectRepository):
    """What has changed in one job, or among the jobs of the project."""

    def find_newest_step(self, job_id: str) -> LoggedStep | None:
        """Return the last row of a loss log. None if it is empty."""
        query = select(StepRow.attempt, StepRow.metrics).where(*self._is_of(job_id))
        newest = self._session.execute(query.order_by(StepRow.step.desc()).limit(1)).one_or_none()
        return None if newest is None else _logged(*newest)

    def list_steps_after(
        self, job_id: str, *, attempt: int, next_step: int, limit: int
    ) -> list[LoggedStep]:
        """Return rows of a loss log in their order, from the first that a reader has not seen.

        A later attempt deletes the rows after the step that it resumes from, and writes them again.
        So a row has been seen if it is before `next_step` and not of a later attempt.

        Args:
            job_id: the job.
            attempt: attempt that wrote the last row that the reader has seen.
            next_step: number after that of this row; 0 if the reader has seen none.
            limit: maximum number of rows.
        """
        is_of_job = self._is_of(job_id)
        seen = select(StepRow.step).where(
            *is_of_job, StepRow.step < next_step, StepRow.attempt <= attempt
        )
        last_seen = seen.order_by(StepRow.step.desc()).limit(1).scalar_subquery()
        is_new = StepRow.step > func.coalesce(last_seen, -1)
        query = select(StepRow.attempt, StepRow.metrics).where(*is_of_job, is_new)
        rows = self._session.execute(query.order_by(StepRow.step).limit(limit))
        return [_logged(*row) for row in rows]

    def find_last_change(self) -> datetime | None:
        """Return when a job of the project was last written. None if it has no jobs."""
        query = self._select(Job).with_only_columns(func.max(Job.updated_at))
        return self._session.scalar(query)

    def list_changed(self, since: datetime) -> dict[str, datetime]:
        """Return when each job was last written that was written then or later, oldest first."""
        columns = (Job.id, Job.updated_at)
        query = self._select(Job).with_only_columns(*columns).where(Job.updated_at >= since)
        rows = self._session.execute(query.order_by(Job.updated_at, Job.id))
        return {row.id: row.updated_at for row in rows}

    def list_jobs(self, job_ids: Sequence[str]) -> Sequence[Job]:
        """Return the jobs with these ids, oldest first. Those that were deleted are left out."""
        query = self._select(Job).where(Job.id.in_(job_ids)).order_by(Job.id)
        return self._session.scalars(query).all()

    def _is_of(self, job_id: str) -> tuple[ColumnElement[bool], ...]:
        its_job = (Job.id == job_id, Job.project_id == self._project_id)
        return StepRow.job_id == job_id, exists().where(*its_job)


def no_such_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"No such fine-tuning job: {job_id:.80}", code="job_not_found")


def _logged(attempt: int, metrics: dict[str, Any]) -> LoggedStep:
    return LoggedStep(attempt, StepMetrics.model_validate(metrics))


def _losses(metrics: StepMetrics) -> list[str]:
    losses: list[str] = []
    if metrics.train_loss is not None:  # step 0 has none
        losses.append(f"training loss={metrics.train_loss:.2f}")
    if metrics.valid_loss is not None:
        losses.append(f"full validation loss={metrics.valid_loss:.2f}")
    if metrics.train_rewards is not None:
        losses.append(f"training reward accuracy={metrics.train_rewards.accuracy:.2f}")
    if metrics.valid_rewards is not None:
        losses.append(f"full validation reward accuracy={metrics.valid_rewards.accuracy:.2f}")
    return losses


def _metrics_data(metrics: StepMetrics, total_steps: int) -> dict[str, Any]:
    data: dict[str, Any] = {"step": metrics.step, "total_steps": total_steps}
    if metrics.train_loss is not None:
        data["train_loss"] = metrics.train_loss
        data["train_mean_token_accuracy"] = metrics.train_mean_token_accuracy
    if metrics.valid_loss is not None:
        data["valid_perplexity"] = metrics.valid_perplexity
        data["valid_loss"] = data["full_valid_loss"] = metrics.valid_loss
        data["valid_mean_token_accuracy"] = metrics.valid_mean_token_accuracy
        data["full_valid_mean_token_accuracy"] = metrics.valid_mean_token_accuracy
    return data | metrics.named_rewards()
