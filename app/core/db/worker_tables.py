"""The table of the workers that run."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

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
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    """Time of the latest heartbeat."""
    silent_since: Mapped[datetime | None]
    """When an API process noticed that heartbeats are missing. The next heartbeat clears it."""
    stopping_at: Mapped[datetime | None]
    """When it was told to stop: since then it takes no more jobs."""
