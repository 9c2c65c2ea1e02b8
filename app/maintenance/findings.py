"""The findings of `tunery doctor`, and the service that it examines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """The service works, but somebody should know."""
    BAD = "bad"
    """Something is lost, stuck or about to fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    check: str
    level: Level
    message: str
    repaired: str = ""
    """What was repaired. Empty if nothing was."""
    advice: str = ""
    """What the operator should do. Empty if there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Patient:
    """The service that is examined, running or stopped, and the options of the examination."""

    settings: Settings
    database: Database
    store: BlobStore
    now: datetime
    is_deep: bool = False
    """True to read every byte of every file."""
    may_repair: bool = False


Check = Callable[[Patient], Iterator[Finding]]
