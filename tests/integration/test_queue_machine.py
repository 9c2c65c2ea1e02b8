"""The life of jobs as a state machine, driven at random over the real repositories.

A model of a few lines says what must be true after every step, for jobs that are checked, claimed,
lost, paused, cancelled and finished in any order, by workers that may have been dead for long.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, event, select

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.check_tables import DataCheck
from app.core.db.repositories.data_checks import MAX_CRASHES as MAX_CHECK_CRASHES
from app.core.db.repositories.data_checks import DataCheckRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease, LeaseRepository, RequestedAction
from app.core.db.repositories.recovery import (
    MAX_CRASHES,
    MAX_INTERRUPTIONS,
    Crash,
    RecoveryRepository,
)
from app.core.db.repositories.saved_states import KEPT, SavedStateRepository
from app.core.db.session import Database
from app.core.db.tables import Event, File, Job, SavedState, StepRow
from app.core.db.worker_tables import Attempt
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import JobError
from app.core.job.status import TRANSITIONS, JobStatus
from tests.builders import MINUTE, NOW, build_file, build_job, build_metrics, claim_check
from tests.effort import effort

CRASH = Crash("The training process died", "Do less.", "")
REFUSED = JobError(code="row_too_long", message="Line 3 is too long.", param="training_file")


@dataclass
class Expected:
    """What the model knows of a job."""

    status: JobStatus = JobStatus.QUEUED
    priority: int = 0
    attempt: int = 0
    steps: int = 0
    saved: list[int] = field(default_factory=list)
    crashes: int = 0
    interruptions: int = 0
    is_unwanted: bool = False
    is_to_pause: bool = False
    expires: timedelta = timedelta(0)
    checks: int = 0
    """How often the check of its data was begun."""
    checked_by: str = ""
    check_expires: timedelta | None = None
    """When the lease of the present check ends. None if nobody checks the data."""
    check_crashes: int = 0


class QueueMachine(RuleBasedStateMachine):
    """Every rule is one transaction, as in the service."""

    database: Database
    """Set by the test; emptied before every run."""

    leases = Bundle("leases")
    checks = Bundle("checks")

    @initialize()
    def empty(self) -> None:
        self.jobs: dict[str, Expected] = {}
        self.elapsed = timedelta(0)
        with self.database.engine.begin() as connection:
            for table in (StepRow, Event, SavedState, Attempt, DataCheck, Job, File):
                connection.execute(delete(table))
        with self.database.writing() as session:
            session.add(build_file(id="file-training"))

    @rule(priority=st.sampled_from([0, 0, 0, 5, -5]), starts=st.booleans())
    def submit(self, priority: int, *, starts: bool) -> None:
        self.add(priority, JobStatus.VALIDATING_FILES, is_to_pause=not starts)

    @rule(priority=st.sampled_from([0, 0, 0, 5, -5]), starts=st.booleans())
    def submit_checked(self, priority: int, *, starts: bool) -> None:
        """A job whose data was checked before, so that there is more to train."""
        self.add(priority, JobStatus.QUEUED if starts else JobStatus.PAUSED)

    @rule(target=checks, worker=st.sampled_from(["worker-1", "worker-2"]))
    def claim_check(self, worker: str) -> Any:
        lease = claim_check(self.database, worker, now=self.now)
        free = [
            (-job.priority, job_id)
            for job_id, job in self.jobs.items()
            if job.status is JobStatus.VALIDATING_FILES
            and (job.check_expires is None or job.check_expires < self.elapsed)
        ]
        if lease is None:
            assert not free
            return multiple()
        job = self.jobs[lease.job_id]
        assert (-job.priority, lease.job_id) == min(free)
        job.checks, job.checked_by = job.checks + 1, worker
        job.check_expires = self.elapsed + MINUTE
        assert lease.attempt == job.checks
        return multiple(lease)

    @rule(check=checks)
    def renew_check(self, check: Lease) -> None:
        job = self.checked(check)
        with self.fenced_check(check), self.database.writing() as session:
            DataCheckRepository(session).renew(check, until=self.now + MINUTE)
        if job:
            job.check_expires = self.elapsed + MINUTE

    @rule(check=consumes(checks), error=st.sampled_from([None, None, REFUSED]))
    def finish_check(self, check: Lease, error: JobError | None) -> None:
        job = self.checked(check)
        with self.fenced_check(check), self.database.writing() as session:
            DataCheckRepository(session).finish(check, {}, error=error, now=self.now)
        if job:
            after = JobStatus.PAUSED if job.is_to_pause else JobStatus.QUEUED
            job.status, job.is_to_pause = JobStatus.FAILED if error else after, False

    @rule(check=checks)
    def release_check(self, check: Lease) -> None:
        job = self.checked(check)
        with self.fenced_check(check), self.database.writing() as session:
            DataCheckRepository(session).release(check, now=self.now)
        if job:
            job.check_expires = None

    @rule(check=checks)
    def crash_check(self, check: Lease) -> None:
        job = self.checked(check)
        with self.fenced_check(check), self.database.writing() as session:
            DataCheckRepository(session).crash(check, "It died", now=self.now)
        if job:
            job.check_expires = None
            job.check_crashes += 1
            if job.check_crashes >= MAX_CHECK_CRASHES:
                job.status, job.is_to_pause = JobStatus.FAILED, False

    @rule(target=leases, worker=st.sampled_from(["worker-1", "worker-2"]))
    def claim(self, worker: str) -> Any:
        with self.database.writing() as session:
            lease = LeaseRepository(session).claim(worker, now=self.now, lease_for=MINUTE)
        waiting = [
            (-job.priority, job_id)
            for job_id, job in self.jobs.items()
            if job.status is JobStatus.QUEUED
        ]
        if lease is None:
            assert not waiting
            return multiple()
        assert (-self.jobs[lease.job_id].priority, lease.job_id) == min(waiting)
        job = self.jobs[lease.job_id]
        job.status, job.attempt = JobStatus.RUNNING, job.attempt + 1
        job.expires = self.elapsed + MINUTE
        assert lease.attempt == job.attempt
        with self.database.writing() as session:
            step = SavedStateRepository(session, DEFAULT_PROJECT_ID).newest_step(lease.job_id)
            LeaseRepository(session).begin(lease, after_step=step, now=self.now)
        assert step == max(job.saved, default=0)
        job.steps = step
        return multiple(lease)

    @rule(lease=leases, steps=st.integers(1, 3))
    def train(self, lease: Lease, steps: int) -> None:
        job = self.owned(lease)
        first = job.steps + 1 if job else 1
        rows = [build_metrics(step) for step in range(first, first + steps)]
        with self.fenced(lease), self.database.writing() as session:
            LeaseRepository(session).record_steps(
                lease, rows, tokens_per_second=1.0, estimated_finish_at=None
            )
        if job:
            job.steps += steps

    @rule(lease=leases)
    def save(self, lease: Lease) -> None:
        job = self.owned(lease)
        step = job.steps if job else 1
        if job and step == max(job.saved, default=0):
            return
        files = {"state": {"key": f"{step}", "bytes": 1, "sha256": "0"}}
        with self.fenced(lease), self.database.writing() as session:
            SavedStateRepository(session, DEFAULT_PROJECT_ID).add(lease, step, files, now=self.now)
        if job:
            job.saved = [*job.saved, step][-KEPT:]
            job.crashes = job.interruptions = 0

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        job = self.owned(lease)
        with self.fenced(lease), self.database.writing() as session:
            action = LeaseRepository(session).renew(lease, until=self.now + MINUTE)
        if job:
            job.expires = self.elapsed + MINUTE
            expected = RequestedAction.PAUSE if job.is_to_pause else RequestedAction.CONTINUE
            assert action is (RequestedAction.CANCEL if job.is_unwanted else expected)

    @rule(
        lease=consumes(leases), status=st.sampled_from([JobStatus.SUCCEEDED, JobStatus.CANCELLED])
    )
    def finish(self, lease: Lease, status: JobStatus) -> None:
        job = self.owned(lease)
        with self.fenced(lease), self.database.writing() as session:
            LeaseRepository(session).finish(lease, status, now=self.now)
        if job:
            job.status, job.is_to_pause = status, False

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        job = self.owned(lease)
        with self.fenced(lease), self.database.writing() as session:
            RecoveryRepository(session).release(lease, "It was stopped", now=self.now)
        if job:
            self.hand_back(job)

    @rule(lease=leases)
    def crash(self, lease: Lease) -> None:
        job = self.owned(lease)
        with self.fenced(lease), self.database.writing() as session:
            RecoveryRepository(session).crash(lease, CRASH, now=self.now)
        if job:
            job.crashes += 1
            self.hand_back(job, fails=job.crashes >= MAX_CRASHES)

    @rule(by=st.sampled_from([10, 59, 61, 300]))
    def wait(self, by: int) -> None:
        self.elapsed += timedelta(seconds=by)

    @rule()
    def rescue(self) -> None:
        with self.database.writing() as session:
            rescued = RecoveryRepository(session).rescue_expired(now=self.now)
        late = {
            job_id
            for job_id, job in self.jobs.items()
            if job.status is JobStatus.RUNNING and job.expires < self.elapsed
        }
        assert {job.job_id for job in rescued} == late
        self.lose(late)

    @rule(worker=st.sampled_from(["worker-1", "worker-2"]))
    def bury(self, worker: str) -> None:
        """A worker of this host is seen to be dead."""
        with self.database.writing() as session:
            rescued = RecoveryRepository(session).rescue_orphans([worker], now=self.now)
            DataCheckRepository(session).release_orphans([worker])
        with self.database.reading() as session:
            owners = dict(session.execute(select(Job.id, Job.worker_id)).all())
        expected = {
            job_id
            for job_id, job in self.jobs.items()
            if job.status is JobStatus.RUNNING and owners[job_id] == worker
        }
        assert {job.job_id for job in rescued} == expected
        self.lose(expected)
        for job in self.jobs.values():
            if job.checked_by == worker:
                job.check_expires = None

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id, job = self.pick(data)
        with self.database.writing() as session:
            changed = JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(
                job_id, now=self.now
            )
        assert (changed is None) == job.status.is_terminal
        if job.status is JobStatus.RUNNING:
            job.is_unwanted = True
        elif not job.status.is_terminal:
            job.status, job.is_to_pause = JobStatus.CANCELLED, False

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        job_id, job = self.pick(data)
        with self.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job_id, now=self.now)
        if job.status is JobStatus.QUEUED:
            job.status = JobStatus.PAUSED
        elif job.status in (JobStatus.VALIDATING_FILES, JobStatus.RUNNING):
            job.is_to_pause = not job.is_unwanted

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job_id, job = self.pick(data)
        with self.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).resume(job_id, now=self.now)
        if job.status is JobStatus.PAUSED:
            job.status = JobStatus.QUEUED
        elif job.status in (JobStatus.VALIDATING_FILES, JobStatus.RUNNING):
            job.is_to_pause = False

    @invariant()
    def the_database_agrees(self) -> None:
        with self.database.reading() as session:
            found = {job.id: job for job in session.scalars(select(Job))}
            steps: dict[str, list[tuple[int, int]]] = {job_id: [] for job_id in found}
            for row in session.scalars(select(StepRow).order_by(StepRow.step)):
                steps[row.job_id].append((row.step, row.attempt))
            open_attempts = session.execute(
                select(Attempt.job_id, Attempt.attempt).where(Attempt.ended_at.is_(None))
            ).all()
        running = {
            (job_id, job.attempt)
            for job_id, job in self.jobs.items()
            if job.status is JobStatus.RUNNING
        }
        assert {tuple(row) for row in open_attempts} == running
        assert found.keys() == self.jobs.keys()
        for job_id, job in self.jobs.items():
            row = found[job_id]
            assert (row.status, row.attempt) == (job.status, job.attempt)
            assert (row.crashes, row.interruptions) == (job.crashes, job.interruptions)
            assert (row.pause_requested_at is not None) == job.is_to_pause
            assert [step for step, _ in steps[job_id]] == list(range(1, job.steps + 1))
            attempts = [attempt for _, attempt in steps[job_id]]
            assert attempts == sorted(attempts)

    @property
    def now(self):
        return NOW + self.elapsed

    def add(self, priority: int, status: JobStatus, *, is_to_pause: bool = False) -> None:
        asked_at = self.now if is_to_pause else None
        job = build_job(
            priority=priority, status=status, created_at=self.now, pause_requested_at=asked_at
        )
        with self.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).add(job)
        self.jobs[job.id] = Expected(status, priority, is_to_pause=is_to_pause)

    def pick(self, data: st.DataObject) -> tuple[str, Expected]:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        return job_id, self.jobs[job_id]

    def owned(self, lease: Lease) -> Expected | None:
        """The job, if the lease still holds it."""
        job = self.jobs[lease.job_id]
        is_held = job.status is JobStatus.RUNNING and lease.attempt == job.attempt
        return job if is_held else None

    def fenced(self, lease: Lease) -> AbstractContextManager[Any]:
        """Whoever does not hold the job any more is refused."""
        return nullcontext() if self.owned(lease) else pytest.raises(LeaseLostError)

    def checked(self, check: Lease) -> Expected | None:
        """The job, if the lease still holds the check of its data."""
        job = self.jobs[check.job_id]
        is_held = job.check_expires is not None and check.attempt == job.checks
        return job if is_held and job.status is JobStatus.VALIDATING_FILES else None

    def fenced_check(self, check: Lease) -> AbstractContextManager[Any]:
        return nullcontext() if self.checked(check) else pytest.raises(LeaseLostError)

    def lose(self, job_ids: set[str]) -> None:
        for job_id in job_ids:
            job = self.jobs[job_id]
            job.interruptions += 1
            self.hand_back(job, fails=job.interruptions >= MAX_INTERRUPTIONS)

    def hand_back(self, job: Expected, *, fails: bool = False) -> None:
        after = JobStatus.PAUSED if job.is_to_pause else JobStatus.QUEUED
        if job.is_unwanted:
            after = JobStatus.CANCELLED
        elif fails:
            after = JobStatus.FAILED
        assert after in TRANSITIONS[job.status]
        job.status, job.is_to_pause = after, False


def test_whatever_happens_in_whatever_order(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        event.listen(
            database.engine,
            "connect",
            lambda connection, _: connection.execute("PRAGMA synchronous = OFF"),
        )
        database.engine.dispose()
    QueueMachine.database = database

    run_state_machine_as_test(
        QueueMachine,
        settings=hypothesis_settings(max_examples=effort(20, long=60), stateful_step_count=40),
    )
