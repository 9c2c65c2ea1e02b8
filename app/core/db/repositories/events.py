"""Events of jobs: they tell the user what happened, and when."""

from datetime import datetime
from typing import Any, Literal

from app.core.db.base import Page, ProjectRepository
from app.core.db.tables import Event
from app.core.ids import IdPrefix, new_id
from app.core.job.loss_log import StepMetrics

Level = Literal["info", "warn", "error"]


class EventRepository(ProjectRepository):
    def add(
        self,
        job_id: str,
        message: str,
        *,
        now: datetime,
        level: Level = "info",
        data: dict[str, Any] | None = None,
    ) -> None:
        """Add an event that tells the user something. With `data`, it is a metrics event."""
        self._session.add(
            Event(
                id=new_id(IdPrefix.EVENT),
                project_id=self._project_id,
                job_id=job_id,
                created_at=now,
                level=level,
                type="message" if data is None else "metrics",
                message=message,
                data=data,
            )
        )

    def add_metrics(
        self, job_id: str, metrics: StepMetrics, *, total_steps: int, now: datetime
    ) -> None:
        """Add the metrics of one step, with OpenAI's text and keys. Step 0 has no training loss."""
        losses: list[str] = []
        data: dict[str, Any] = {"step": metrics.step, "total_steps": total_steps}
        if metrics.train_loss is not None:
            losses.append(f"training loss={metrics.train_loss:.2f}")
            data["train_loss"] = metrics.train_loss
            data["train_mean_token_accuracy"] = metrics.train_mean_token_accuracy
        if metrics.valid_loss is not None:
            losses.append(f"full validation loss={metrics.valid_loss:.2f}")
            data["valid_perplexity"] = metrics.valid_perplexity
            data["valid_loss"] = data["full_valid_loss"] = metrics.valid_loss
            data["valid_mean_token_accuracy"] = metrics.valid_mean_token_accuracy
            data["full_valid_mean_token_accuracy"] = metrics.valid_mean_token_accuracy
        message = f"Step {metrics.step}/{total_steps}: {', '.join(losses)}"
        self.add(job_id, message, now=now, data=data)

    def list_page(self, job_id: str, *, after: str | None, limit: int) -> Page[Event]:
        """Return a page of events, newest first."""
        query = self._select(Event).where(Event.job_id == job_id)
        return self._fetch_page(query, Event.id, after=after, limit=limit)
