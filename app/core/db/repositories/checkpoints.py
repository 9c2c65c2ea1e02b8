"""Every query on checkpoints, and on the tuned models that point to them."""

import math

from app.core.db.base import Page, ProjectRepository
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.tables import Checkpoint, File, Job, TunedModel
from app.core.errors import NotFoundError
from app.core.job.status import ENDED


class CheckpointRepository(ProjectRepository):
    def add(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint together with the rows of its files."""
        self._add(checkpoint, *checkpoint.files)

    def list_page(self, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """Return a page of checkpoints, newest first."""
        query = self._select(Checkpoint).where(Checkpoint.job_id == job_id)
        return self._fetch_page(query, Checkpoint.id, after=after, limit=limit)

    def find(self, job_id: str, checkpoint_id: str) -> Checkpoint | None:
        which = (Checkpoint.id == checkpoint_id, Checkpoint.job_id == job_id)
        return self._session.scalar(self._select(Checkpoint).where(*which))

    def find_at_step(self, job_id: str, step: int) -> Checkpoint | None:
        which = (Checkpoint.job_id == job_id, Checkpoint.step == step)
        return self._session.scalar(self._select(Checkpoint).where(*which))

    def find_of_model(self, model_name: str, step: int) -> tuple[Checkpoint, Job] | None:
        """Return the checkpoint at a step of the job with this model name, and that job."""
        query = self._select(Checkpoint).join(Job, Job.id == Checkpoint.job_id)
        is_named = (Job.fine_tuned_model == model_name, Job.project_id == self._project_id)
        found = query.where(*is_named, Checkpoint.step == step).add_columns(Job)
        row = self._session.execute(found).first()
        return None if row is None else (row[0], row[1])

    def lock_to_continue(self, checkpoint_id: str) -> bool:
        """Keep a checkpoint until this transaction ends, which uses it. False if it is gone."""
        query = self._select(Checkpoint).where(Checkpoint.id == checkpoint_id)
        locked = query.with_only_columns(Checkpoint.id).with_for_update(read=True)
        return self._session.scalar(locked) is not None

    def lock_to_delete(self, job_id: str, checkpoint_id: str | None = None) -> dict[str, str]:
        """Lock the checkpoints of a job, or one, so that no new job continues them meanwhile.

        Returns:
            The ids of those that an unfinished job continues, each with that job's id.
        """
        which = [Checkpoint.job_id == job_id]
        if checkpoint_id is not None:
            which.append(Checkpoint.id == checkpoint_id)
        ids = self._select(Checkpoint).where(*which).with_only_columns(Checkpoint.id)
        locked = self._session.scalars(ids.order_by(Checkpoint.id).with_for_update()).all()
        # Not `in_(UNFINISHED)`: SQLite would look for the status, and read every unfinished job.
        is_needed = (Job.parent_checkpoint_id.in_(locked), Job.status.not_in(ENDED))
        jobs = self._session.scalars(self._select(Job).where(*is_needed))
        return {job.parent_checkpoint_id or "": job.id for job in jobs}

    def list_surplus(self, job_id: str, *, keep: int, keeps_best: bool) -> list[Checkpoint]:
        """Return the checkpoints of a job beyond the `keep` most worth keeping.

        Those are the newest, and with `keeps_best` that with the lowest validation loss first.
        """
        query = self._select(Checkpoint).where(Checkpoint.job_id == job_id)
        ranked = list(self._session.scalars(query.order_by(Checkpoint.step.desc())))
        if keeps_best and ranked:
            best = min(ranked, key=lambda each: (_valid_loss(each), each.step))
            ranked.sort(key=lambda each: each is not best)  # the others stay in their order
        return ranked[keep:]

    def delete(self, checkpoint: Checkpoint) -> list[str]:
        """Delete a checkpoint, its files and the tasks on it.

        Returns:
            Keys of the blobs to free afterwards.
        """
        tasks = TaskRepository(self._session, self._project_id)
        keys = tasks.delete_of_checkpoint(checkpoint.id)
        files = self._delete(File).where(File.checkpoint_id == checkpoint.id)
        keys += self._session.scalars(files.returning(File.blob_key))
        self._session.execute(self._delete(Checkpoint).where(Checkpoint.id == checkpoint.id))
        return keys


class TunedModelRepository(ProjectRepository):
    def add(self, model: TunedModel) -> None:
        self._add(model)

    def find(self, name: str) -> TunedModel | None:
        return self._session.scalar(self._select(TunedModel).where(TunedModel.id == name))

    def get(self, name: str) -> TunedModel:
        """Return the tuned model of this name.

        Raises:
            NotFoundError: no model has this name.
        """
        model = self.find(name)
        if model is None:
            raise no_such_model(name)
        return model

    def list_all(self) -> list[TunedModel]:
        """Return all tuned models, newest first."""
        newest_first = self._select(TunedModel).order_by(TunedModel.created_at.desc())
        return list(self._session.scalars(newest_first))

    def delete(self, model: TunedModel) -> None:
        """Delete a tuned model.

        Raises:
            NotFoundError: another transaction has deleted it meanwhile.
        """
        statement = self._delete(TunedModel).where(TunedModel.id == model.id)
        if self._session.scalar(statement.returning(TunedModel.id)) is None:
            raise no_such_model(model.id)


def _valid_loss(checkpoint: Checkpoint) -> float:
    loss: float | None = checkpoint.metrics["valid_loss"]
    return math.inf if loss is None else loss


def no_such_model(name: str) -> NotFoundError:
    return NotFoundError(f"No such model: {name:.200}", code="model_not_found", param="model")
