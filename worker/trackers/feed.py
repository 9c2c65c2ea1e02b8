"""Sends the loss log of a running job to its trackers, from threads that no training waits for.

A feed reads the steps from the database, behind the last one that the tracker has. So nothing is
lost while a tracker is away, an attempt sends what an earlier one could not, and steps that are
trained a second time are not sent again.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass

from pydantic import ValidationError

from app.core.clock import Clock, steady_s
from app.core.db.repositories.events import EventRepository, Level
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.errors import DatabaseBusyError, LeaseLostError, NotFoundError, StorageFullError
from app.core.job.integrations import Integration
from app.core.job.loss_log import StepMetrics
from app.core.job.status import JobStatus
from app.core.settings import Settings
from worker.trackers.messages import NOTHING_SENT, Access, CloseRun, Ending, OpenRun, SendRows
from worker.trackers.process import TrackerError, TrackerProcess

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 50
"""Number of steps that are sent at once. MLflow takes a thousand values at once: up to eighteen for
a step."""

INTERVAL_S = 2.0
"""Interval at which the database is asked for new steps."""

REPLY_S = 60.0
"""Time that a tracker has for a reply. The first one includes loading its library."""

LINGER_S = 60.0
"""Time that a tracker has to catch up after the attempt has ended, in seconds."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0

_TRANSIENT_ERRORS = (DatabaseBusyError, StorageFullError)

_ENDINGS: dict[JobStatus, Ending] = {
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}


@contextmanager
def feeding(
    lease: Lease,
    database: Database,
    settings: Settings,
    clock: Clock,
    *,
    linger_s: float = LINGER_S,
) -> Generator[list[threading.Thread]]:
    """Feed the trackers of a job while the block runs.

    At the end of the block nothing is waited for: the threads send what is left, and then end.

    Args:
        lease: the attempt.
        database: where its steps are.
        settings: how trackers are reached.
        clock: the time of events.
        linger_s: time for what is left, in seconds.
    """
    has_ended = threading.Event()
    threads: list[threading.Thread] = []
    for integration in _read_integrations(lease):
        feed = _Feed(
            integration=integration,
            lease=lease,
            database=database,
            settings=settings,
            clock=clock,
            has_ended=has_ended,
            linger_s=linger_s,
        )
        # In the context of its caller, so that its log lines name the same job.
        threads.append(threading.Thread(target=copy_context().run, args=(feed.run,), daemon=True))
        threads[-1].start()
    try:
        yield threads
    finally:
        has_ended.set()


def _read_integrations(lease: Lease) -> list[Integration]:
    try:
        return [Integration.model_validate(each) for each in lease.integrations]
    except ValidationError as error:  # of a later release, and no reason not to train
        logger.warning("the integrations of the job cannot be read: %s", error)
        return []


@dataclass(kw_only=True)
class _Feed:
    """Feeds one tracker during one attempt."""

    integration: Integration
    lease: Lease
    database: Database
    settings: Settings
    clock: Clock
    has_ended: threading.Event
    """Set once the attempt has ended."""
    linger_s: float

    _give_up_at_s: float | None = None
    _sent: int = NOTHING_SENT
    _has_opened: bool = False
    _has_failed: bool = False

    @property
    def _label(self) -> str:
        return self.integration.label

    def run(self) -> None:
        """Feed until the attempt has ended and everything is sent, or there is no time left."""
        try:
            self._feed()
        except (LeaseLostError, NotFoundError):  # another attempt feeds now, or the job is deleted
            return
        except _TRANSIENT_ERRORS as error:
            logger.warning("%s gets no more steps: %s", self._label, error)
        except Exception:
            logger.exception("the feed of %s failed", self._label)

    def _feed(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._try_to_feed():
            if self._seconds_left() <= pause_s:
                self._warn_of_loss()
                return
            if self.has_ended.is_set():
                time.sleep(pause_s)
            elif self.has_ended.wait(pause_s):
                pause_s = _FIRST_PAUSE_S  # tried again at once: little time is left
                continue
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _try_to_feed(self) -> bool:
        """Feed until the attempt has ended. Returns False if something kept it from that."""
        try:
            with TrackerProcess() as process:
                self._send_all(process)
        except TrackerError as error:
            logger.warning("%s: %s: %s", self._label, error, error.detail)
            self._warn_of_failure(error)
        except _TRANSIENT_ERRORS as error:
            logger.warning("%s waits for the database: %s", self._label, error)
        else:
            return True
        return False

    def _send_all(self, process: TrackerProcess) -> None:
        """Send everything that the tracker does not have, until the attempt has ended.

        Raises:
            TrackerError: the tracker cannot be used.
            LeaseLostError: the job is another attempt's.
            NotFoundError: the job was deleted.
        """
        opened = process.open(self._request_run(), seconds_left=self._patience())
        self._sent = opened.last_step
        self._announce(opened.run)
        while True:
            has_ended = self.has_ended.is_set()  # asked first: the last steps are read after it
            with self.database.reading() as session:
                job, rows = self._require_job(session), self._read_rows(session)
                ending = _ENDINGS.get(job.status)
            if rows:
                process.ask(SendRows(rows=tuple(rows)), seconds_left=self._patience())
                self._sent = rows[-1].step
            elif has_ended:
                process.ask(CloseRun(ending=ending), seconds_left=self._patience())
                return
            else:
                self.has_ended.wait(INTERVAL_S)

    def _request_run(self) -> OpenRun:
        settings = self.settings
        return OpenRun(
            job_id=self.lease.job_id,
            integration=self.integration,
            parameters=_parameters_of(self.lease),
            access=Access(
                mlflow_tracking_uri=settings.mlflow_tracking_uri,
                mlflow_tracking_token=settings.mlflow_tracking_token.get_secret_value(),
                wandb_api_key=settings.wandb_api_key.get_secret_value(),
                wandb_base_url=settings.wandb_base_url,
            ),
        )

    def _require_job(self, session: Session) -> Job:
        job = JobRepository(session, self.lease.project_id).get(self.lease.job_id)
        if job.attempt != self.lease.attempt:
            raise LeaseLostError(self.lease.job_id, self.lease.attempt)
        return job

    def _read_rows(self, session: Session) -> list[StepMetrics]:
        jobs = JobRepository(session, self.lease.project_id)
        return jobs.list_steps(self.lease.job_id, first=self._sent + 1, limit=ROWS_AT_ONCE)

    def _seconds_left(self) -> float:
        """Time until the feed gives up, in seconds. It begins once the attempt has ended."""
        if not self.has_ended.is_set():
            return float("inf")
        if self._give_up_at_s is None:
            self._give_up_at_s = steady_s() + self.linger_s
        return self._give_up_at_s - steady_s()

    def _patience(self) -> Callable[[], float]:
        """Begin to wait for a reply. Returns what tells how long it may still take."""
        until_s = steady_s() + REPLY_S
        return lambda: min(until_s - steady_s(), self._seconds_left())

    def _announce(self, run: str) -> None:
        if not self._has_opened:
            self._tell(f"Metrics are sent to {self._label}, run {run}")
        self._has_opened = True

    def _warn_of_failure(self, error: TrackerError) -> None:
        if not self._has_failed:
            self._tell(
                f"{self._label} cannot be used: {error}. The training is not affected, and the "
                "metrics are sent once it can be used",
                level="warn",
            )
        self._has_failed = True

    def _warn_of_loss(self) -> None:
        """Say that metrics may be lost, unless the next attempt will send them."""
        with self.database.reading() as session:
            job = self._require_job(session)
        if job.status.is_terminal:
            self._tell(
                f"{self._label} has not confirmed that it has all metrics. The loss log of the "
                "job has them",
                level="warn",
            )

    def _tell(self, message: str, level: Level = "info") -> None:
        with self.database.writing() as session:
            self._require_job(session)
            events = EventRepository(session, self.lease.project_id)
            events.add(self.lease.job_id, message, now=self.clock(), level=level)


def _parameters_of(lease: Lease) -> dict[str, object]:
    """What is shown of a job beside its metrics, in one level."""
    config = lease.config.model_dump(mode="json")
    lora = config.pop("lora")
    dpo: dict[str, object] = config.pop("dpo") or {}
    return {
        "base_model": lease.base_model,
        "training_file": lease.training_file_id,
        "validation_file": lease.validation_file_id,
        **config,
        **{f"lora.{name}": value for name, value in lora.items()},
        **{f"dpo.{name}": value for name, value in dpo.items()},
    }
