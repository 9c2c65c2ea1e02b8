"""A job that trains for longer than its project allows is told to save, and then fails."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.db.base import Project
from app.core.db.repositories.checkpoints import CheckpointRepository
from app.core.db.repositories.leases import Lease
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.saved_states import may_be_continued
from app.core.db.session import Database
from app.core.job.child.training_events import Started, Stepped
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_job,
    build_checkpoint,
    build_metrics,
    claim,
    get_job,
    list_checkpoints,
)
from tests.fakes import FakeLauncher, FrozenClock
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending, Signal

SAVED_AND_STOPPED = Ending(-15, was_asked=True, was_killed=False, log_tail="")
LIMIT_S = 60

Make = Callable[[Lease], Attempt]


@pytest.fixture
def make(
    database: Database,
    settings: Settings,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Make:
    """An attempt of a project whose jobs may train for a minute."""
    with database.writing() as session:
        project = session.get(Project, DEFAULT_PROJECT_ID)
        assert project is not None
        project.max_duration_s = LIMIT_S
    resources = Resources(
        settings, database, store, catalogue, launcher=FakeLauncher(), clock=clock
    )
    return lambda lease: Attempt(lease, resources)


@pytest.mark.parametrize(
    ("after_s", "expected"),
    [
        (LIMIT_S - 30, Signal.CONTINUE),
        (LIMIT_S + 1, Signal.SAVE_AND_STOP),
        (LIMIT_S + 31, Signal.KILL),  # the grace of `stop_grace_s` is over
    ],
)
def test_a_job_is_told_to_save_and_is_killed_if_it_does_not(
    make: Make, database: Database, clock: FrozenClock, after_s: int, expected: Signal
) -> None:
    add_job(database)
    attempt = make(claim(database))
    clock.advance(timedelta(seconds=after_s))

    attempt.begin(after_step=0)

    assert attempt.requested_signal() is expected


def test_a_job_over_its_time_fails_and_keeps_its_checkpoints(
    make: Make, database: Database, clock: FrozenClock
) -> None:
    job = add_job(database)
    attempt = make(claim(database))
    with database.writing() as session:
        CheckpointRepository(session, DEFAULT_PROJECT_ID).add(build_checkpoint(job))
    clock.advance(timedelta(seconds=LIMIT_S + 1))
    attempt.begin(after_step=0)

    attempt.settle(SAVED_AND_STOPPED)

    job = get_job(database, job.id)
    assert (job.status, (job.error or {})["code"]) == (JobStatus.FAILED, "max_duration_exceeded")
    assert len(list_checkpoints(database, job.id)) == 1
    assert may_be_continued(job)


@pytest.mark.parametrize(("steps", "why"), [(0, "before the first step"), (1, "has trained for")])
def test_a_job_over_its_time_says_whether_it_has_trained(
    make: Make, database: Database, clock: FrozenClock, steps: int, why: str
) -> None:
    job = add_job(database)
    attempt = make(claim(database))
    clock.advance(timedelta(seconds=LIMIT_S + 1))
    attempt.begin(after_step=0)
    attempt.on_event(Started(total_steps=1))
    for step in range(1, steps + 1):
        attempt.on_event(Stepped(metrics=build_metrics(step)))

    attempt.settle(SAVED_AND_STOPPED)

    assert why in (get_job(database, job.id).error or {})["message"]


def test_earlier_attempts_count(make: Make, database: Database, clock: FrozenClock) -> None:
    add_job(database)
    first = claim(database)
    with database.writing() as session:
        later = NOW + timedelta(seconds=LIMIT_S - 10)
        RecoveryRepository(session).release(first, "The worker was stopped", now=later)
    clock.advance(timedelta(hours=1))
    attempt = make(claim(database, now=clock()))
    clock.advance(timedelta(seconds=11))

    attempt.begin(after_step=0)

    assert attempt.requested_signal() is Signal.SAVE_AND_STOP
