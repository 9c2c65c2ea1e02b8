"""What an examination finds, and of what."""

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
    """The service works; somebody should know all the same."""
    BAD = "bad"
    """Something is lost, stuck or about to fail."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check."""

    check: str
    level: Level
    message: str
    repaired: str = ""
    """What was done about it."""
    advice: str = ""
    """What somebody should do."""


@dataclass(frozen=True, slots=True)
class Patient:
    """A service that may be running or not, and how it is to be examined."""

    settings: Settings
    database: Database
    store: BlobStore
    now: datetime
    is_deep: bool = False
    """Whether every byte is to be read."""
    may_repair: bool = False


Check = Callable[[Patient], Iterator[Finding]]
