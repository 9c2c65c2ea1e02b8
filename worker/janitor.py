"""Chores between jobs: requeue lost jobs, and free what has expired or was left behind."""

import logging
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from app.core.clock import Clock, steady_s
from app.core.db.base import Project
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.files import ExpiredFiles
from app.core.db.repositories.idempotency import KEPT_FOR, OldIdempotencyRecords
from app.core.db.repositories.projects.audit import AuditLog
from app.core.db.repositories.projects.retention import (
    RetainingProjects,
    RetentionRepository,
)
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import UnneededStates
from app.core.db.repositories.sweeps.shared_checks import EndedChecks
from app.core.db.repositories.tasks.leases import TaskQueue
from app.core.db.repositories.tasks.requests import ExpiredTasks
from app.core.db.repositories.uploads import ENDED_KEPT_FOR, EndedUploads
from app.core.db.repositories.webhooks import DELIVERIES_KEPT_FOR, GIVE_UP_AFTER, WebhookQueue
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database, Session
from app.core.disk import Ballast
from app.core.errors import DatabaseBusyError, StoreAwayError
from app.core.orphans import free_orphans
from app.core.settings import Settings
from app.core.storage.blob_store import BlobStore, delete_blobs
from worker.launch.locks import JobLock
from worker.presence import Pace, is_alive, this_host

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Seconds between two rounds of one janitor, where there are few."""

FEW = 4
"""Idle workers whose janitors all keep this interval. More of them share the rounds."""

ORPHANS_INTERVAL_S = 3600.0
"""Seconds between two searches for orphans: each reads the list of all blobs."""

RETENTION_INTERVAL_S = 3600.0
"""Seconds between two looks for what projects keep no longer: each reads all of their jobs."""

BATCH = 100
"""Maximum number of expired rows that one chore deletes in a transaction."""


class Janitor:
    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        store: BlobStore,
        clock: Clock,
        monotonic_s: Callable[[], float] = steady_s,
        pace: Pace | None = None,
        batch: int = BATCH,
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._clock = clock
        self._monotonic_s = monotonic_s
        self._batch = batch
        self._pace = pace or Pace()
        self._done_s = -math.inf
        self._orphans_due_s = 0.0
        self._retention_due_s = 0.0

    def run_if_due(self) -> None:
        """Do the chores if `INTERVAL_S` has passed since the last time, or longer in a crowd."""
        now_s = self._monotonic_s()
        if now_s - self._done_s < self._pace.while_idle_s(INTERVAL_S, few=FEW):
            return
        self._done_s = now_s
        for chore in (
            self.keep_ballast,
            self.rescue_jobs,
            self.delete_expired_files,
            self.expire_uploads,
            self.delete_saved_states,
            self.forget_tokens,
            self.delete_expired_tasks,
            self.delete_idempotency_records,
            self.apply_retention,
            self.give_up_webhooks,
            self.free_orphans,
        ):
            try:
                chore()
            except DatabaseBusyError:
                raise
            except StoreAwayError as error:
                logger.warning("a chore failed: %s", error.for_operator)
            except Exception:  # the other chores and the jobs must not suffer
                logger.exception("a chore failed")

    def rescue_jobs(self) -> None:
        """Put back what dead and silent workers ran or checked, and delete their rows."""
        with self._database.writing() as session:
            workers, recovery = WorkerRepository(session), RecoveryRepository(session)
            now, dead = self._clock(), workers.find_dead(this_host(), is_alive)
            rescued = recovery.rescue_orphans(dead, now=now) + recovery.rescue_expired(now=now)
            DataCheckRepository(session).release_orphans(dead)
            TaskQueue(session).release_orphans(dead)
            workers.remove(dead)
            workers.remove_silent(now=now)
        for job in rescued:
            context = {"job_id": job.job_id, "attempt": job.attempt, "project": job.project_id}
            logger.warning("job rescued", extra=context)

    def delete_expired_files(self) -> None:
        """Delete the files past their `expires_at`."""
        now = self._clock()
        self._delete(lambda session: ExpiredFiles(session).delete(now=now, limit=self._batch))

    def expire_uploads(self) -> None:
        """End uploads that were not completed in time, free their parts, and delete old uploads."""
        now = self._clock()

        def delete_rows(session: Session) -> list[str]:
            uploads = EndedUploads(session)
            keys = uploads.expire(now=now, limit=self._batch)
            uploads.delete_older(than=now - ENDED_KEPT_FOR)
            return keys

        self._delete(delete_rows)

    def delete_saved_states(self) -> None:
        """Free the saved states that no job will resume from."""
        since = self._clock() - timedelta(seconds=self._settings.held_state_s)
        self._delete(
            lambda session: UnneededStates(session).delete(held_since=since, limit=self._batch)
        )

    def forget_tokens(self) -> None:
        """Free the tokens of jobs that have ended."""
        self._delete(lambda session: EndedChecks(session).forget_tokens(limit=self._batch))

    def delete_expired_tasks(self) -> None:
        """Delete tasks that are kept no longer, such as exports, with their files."""
        now = self._clock()
        self._delete(lambda session: ExpiredTasks(session).delete(now=now, limit=self._batch))

    def delete_idempotency_records(self) -> None:
        """Delete old records: a request that comes again after so long is a new request."""
        with self._database.writing() as session:
            OldIdempotencyRecords(session).delete_older(than=self._clock() - KEPT_FOR)

    def give_up_webhooks(self) -> None:
        """End the events that could not be sent for too long, and delete those that have ended."""
        now = self._clock()
        with self._database.writing() as session:
            queue = WebhookQueue(session)
            given_up = queue.give_up(older_than=now - GIVE_UP_AFTER, now=now)
            queue.delete_ended(older_than=now - DELIVERIES_KEPT_FOR)
        for event_id, endpoint_id in given_up:
            context = {"webhook_endpoint_id": endpoint_id, "event_id": event_id}
            logger.warning("webhook given up", extra=context)

    def keep_ballast(self) -> None:
        """Create the ballast file again, once there is space."""
        Ballast(self._settings).make_if_room()

    def apply_retention(self) -> None:
        """Delete what is kept no longer, once an hour: files, ended jobs, events, audit events."""
        if self._monotonic_s() < self._retention_due_s:
            return
        self._retention_due_s = self._monotonic_s() + RETENTION_INTERVAL_S
        with self._database.reading() as session:
            projects = RetainingProjects(session).list_all()
        for project in projects:
            self._retain(project)
        self._shorten_audit_trail()

    def free_orphans(self) -> None:
        """Free what killed processes have left behind, once an hour."""
        if self._monotonic_s() < self._orphans_due_s:
            return
        self._orphans_due_s = self._monotonic_s() + ORPHANS_INTERVAL_S
        freed = free_orphans(self._database, self._store, self._settings)
        if freed:
            logger.warning("orphans freed: %s", freed)
        for path in self._settings.work_dir.glob("*.lock"):
            JobLock(path).remove_if_free()

    def _retain(self, project: Project) -> None:
        now, limit = self._clock(), self._batch

        def rows(session: Session) -> RetentionRepository:
            return RetentionRepository(session, project.id)

        if project.file_retention_days is not None:
            files_since = now - timedelta(days=project.file_retention_days)
            self._delete_found(
                lambda session: rows(session).find_files(files_since, now=now, limit=limit),
                lambda ids, session: rows(session).expire_files(ids, now=now),
            )
        if project.job_retention_days is not None:
            jobs_since = now - timedelta(days=project.job_retention_days)
            self._delete_found(
                lambda session: rows(session).find_jobs(jobs_since, limit=limit),
                lambda ids, session: rows(session).delete_jobs(ids),
            )
        if project.event_retention_days is not None:
            events_since = now - timedelta(days=project.event_retention_days)
            self._delete_found(
                lambda session: rows(session).find_events(events_since, limit=limit),
                lambda ids, session: rows(session).delete_events(ids),
            )

    def _shorten_audit_trail(self) -> None:
        since = self._clock() - timedelta(days=self._settings.audit_retention_days)
        self._delete_found(
            lambda session: AuditLog(session).list_older(than=since, limit=self._batch),
            lambda ids, session: AuditLog(session).delete(ids),
        )

    def _delete_found(
        self,
        find: Callable[[Session], Sequence[str]],
        delete: Callable[[Sequence[str], Session], list[str] | None],
    ) -> None:
        """Delete in small transactions, until nothing is found. Finding keeps nobody from writing.

        Args:
            find: returns ids of some rows to delete.
            delete: deletes rows. Returns keys of the blobs to delete afterwards.
        """
        while ids := self._database.read(find):
            keys = self._database.transact(partial(delete, ids))
            delete_blobs(self._store, keys or ())

    def _delete(self, delete_rows: Callable[[Session], list[str]]) -> None:
        delete_blobs(self._store, self._database.transact(delete_rows))
