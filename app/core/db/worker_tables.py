"""The tables of the workers that run, of their attempts at jobs, and of what they can fetch."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.abilities.needs import needs_of
from app.core.db.base import Base


class WorkerRow(Base):
    """A worker that runs. Its row is removed when it ends, by itself or by a janitor."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    """Boot of the machine and process namespace: where `pid` names a process."""
    pid: Mapped[int]
    process_started: Mapped[int] = mapped_column(BigInteger)
    """When the kernel started the process, in clock ticks since boot: pids are used again."""
    version: Mapped[str]
    """Version of Tunery that the worker runs."""
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory of its machine or container, free or not. Null for a worker of an earlier version."""
    machine: Mapped[str | None]
    """Name of its machine, for people. Null for a worker of an earlier version."""
    ability: Mapped[str | None] = mapped_column(Text)
    """An `Ability` as JSON: what the worker can do. Null for a worker of an earlier version. It is
    a text, so that equal ones can be counted."""
    models_in_memory: Mapped[list[str] | None]
    """Ids of the base models that it has in memory."""
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    """Time of the latest heartbeat."""
    silent_since: Mapped[datetime | None]
    """When an API process noticed that heartbeats are missing. The next heartbeat clears it."""
    stopping_at: Mapped[datetime | None]
    """When it was told to stop: since then it takes no more jobs."""


class DrainedMachine(Base):
    """A machine whose workers take nothing, until an operator says otherwise."""

    __tablename__ = "drained_machines"

    machine: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]


def _needs_of_new(context: Any) -> str:
    columns: dict[str, Any] = context.get_current_parameters()
    return needs_of(**columns)


class NeedsWorker:
    """The columns of a job that decide which workers may run it."""

    plan: Mapped[dict[str, Any] | None]
    """A `StoredPlan`: how its saved states were computed. Null as long as it has none."""
    allow_inexact_resume: Mapped[bool] = mapped_column(default=False)
    """Whether it may go on with another plan if no worker can execute its own."""
    needs: Mapped[str] = mapped_column(default=_needs_of_new)
    """A `Needs`: what a worker must have. Written whenever the job is queued."""
    needed_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory that it takes at least, by the estimate. Null until it was estimated."""
    not_before: Mapped[datetime | None]
    """When it is tried again even if less memory is free; null if it does not wait for memory."""
    waiting_reason: Mapped[str | None]
    """Why it waits for memory. Null if it does not."""


class Attempt(Base):
    """One attempt at running a job, and how it ended."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    worker_id: Mapped[str]
    threads: Mapped[int] = mapped_column(default=1)
    """CPU threads of its training process."""
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    """succeeded, failed, cancelled, paused, released, crashed or lost; null while it runs."""
    from_step: Mapped[int | None]
    """Step after which it resumed, 0 for the start. Null until its training process is started."""
    to_step: Mapped[int | None]
    """Last step in the loss log when it ended. Null while it runs, and if it never began."""
    cause: Mapped[str | None]
    """Why it ended, where its outcome does not say enough: the message of an error, or what
    happened, to begin a sentence with: `The worker died`."""


class StoredModel(Base):
    """An installed base model whose files are in the store, so that any machine can fetch it."""

    __tablename__ = "stored_models"

    id: Mapped[str] = mapped_column(primary_key=True)
    """Id in the catalogue."""
    sha256: Mapped[str] = mapped_column(primary_key=True)
    """Checksum of all files, which jobs name as `base_model_sha256`."""
    record: Mapped[dict[str, Any]]
    """An `InstalledModel`."""
    files: Mapped[dict[str, Any]]
    """Blob key, bytes and sha256 of each file by name, with the record itself."""
    architecture: Mapped[str]
    """`model_type` in its `config.json`. Empty if that names none."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
