"""Settings, seams and intervals that all attempts of a worker share."""

from dataclasses import dataclass

from app.core.base_models import Catalogue
from app.core.clock import Clock, utc_now
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore
from worker.launch.launcher import Launcher


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    store: BlobStore
    catalogue: Catalogue
    launcher: Launcher
    clock: Clock = utc_now
    cancel_poll_interval_s: float = 0.5
    """Interval at which the database is asked what the user wants. A cancel may take 5 seconds."""
    flush_interval_s: float = 1.0
    """Minimum interval between two writes of steps: a commit takes longer than a small step."""
    progress_interval_s: float = 30.0
    """Minimum interval between two lines of a job's progress in the worker's log."""
