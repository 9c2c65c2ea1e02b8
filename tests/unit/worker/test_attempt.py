"""An attempt whose database is busy: nothing is lost, and the lease says how long that may last."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.clock import steady_s
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.leases import Lease
from app.core.db.session import Database, Session
from app.core.db.tables import Job
from app.core.errors import LeaseLostError, StorageFullError
from app.core.job.child.job_spec import JOB_SPEC_NAME
from app.core.job.child.training_events import Failed, JobError, Noted, Saved, Started, Stepped
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    NOW,
    add_job,
    build_job_spec,
    build_metrics,
    claim,
    get_job,
    lock_out_writers,
    write_checkpoint,
)
from tests.fakes import FakeLauncher, FrozenClock
from tests.waiting import wait_until
from worker.attempt.attempt import Attempt
from worker.attempt.endings import Released
from worker.attempt.lease_keeper import LEASE_MARGIN, Resources
from worker.attempt.step_log import MAX_WAITING
from worker.launch.launcher import Ending, Signal

ENDED_WELL = Ending(0, was_asked=False, was_killed=False, log_tail="")


class OtherProcess:
    """Something else that writes to the database, for as long as it likes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held = ExitStack()

    def hold(self) -> None:
        lock_out_writers(self._held.enter_context(self._database.writing()))

    def let_go(self) -> None:
        self._held.close()


@pytest.fixture
def other(database: Database) -> Iterator[OtherProcess]:
    other = OtherProcess(database)
    yield other
    other.let_go()


@pytest.fixture
def job(database: Database) -> Job:
    return add_job(database)


@pytest.fixture
def impatient(database: Database, settings: Settings) -> Iterator[Database]:
    """The same database, for a process that waits for no lock."""
    impatient = Database(settings.resolved_database_url, busy_timeout_s=0)
    yield impatient
    impatient.dispose()


@pytest.fixture
def is_refused(impatient: Database) -> threading.Event:
    """Set once that process was told that the database is busy."""
    is_refused = threading.Event()
    event.listen(impatient.engine, "handle_error", lambda _: is_refused.set())
    return is_refused


@pytest.fixture
def lease(job: Job, database: Database) -> Lease:
    lease = claim(database)
    assert lease.job_id == job.id
    return lease


@pytest.fixture
def make(
    lease: Lease,
    impatient: Database,
    settings: Settings,
    *,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Callable[..., Attempt]:
    """An attempt at the job, in that process."""

    def make(lease_s: float = 60.0, stop_at_s: float | None = None, **resources: Any) -> Attempt:
        changed = settings.model_copy(update={"lease_s": lease_s})
        values = {"database": impatient, "store": store, "clock": clock} | resources
        return Attempt(
            lease,
            Resources(changed, catalogue=catalogue, launcher=FakeLauncher(), **values),
            stop_at_s=lambda: stop_at_s,
        )

    return make


def steps(database: Database, job: Job) -> list[int]:
    with database.reading() as session:
        return [row.step for row in JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id)]


def step(number: int) -> Stepped:
    return Stepped(metrics=build_metrics(number))


def test_steps_that_a_busy_database_refused_are_written_later(
    make: Callable[..., Attempt], other: OtherProcess, database: Database, job: Job
) -> None:
    attempt = make(flush_interval_s=0.0)
    attempt.on_event(step(1))

    other.hold()
    attempt.on_event(step(2))
    attempt.beat()
    other.let_go()
    attempt.on_event(step(3))
    attempt.beat()

    assert steps(database, job) == [1, 2, 3]


def test_no_more_than_a_batch_of_steps_waits_to_be_written(
    make: Callable[..., Attempt], database: Database, job: Job
) -> None:
    """However fast a child takes them, and however rarely the heartbeat writes them."""
    attempt = make(flush_interval_s=0.0)

    for number in range(1, MAX_WAITING + 2):
        attempt.on_event(step(number))

    assert steps(database, job) == list(range(1, MAX_WAITING + 2))


def test_an_event_waits_until_the_database_is_free(
    make: Callable[..., Attempt],
    other: OtherProcess,
    is_refused: threading.Event,
    database: Database,
    job: Job,
) -> None:
    attempt = make()
    other.hold()
    waiting = threading.Thread(target=attempt.on_event, args=(Started(total_steps=5),))

    waiting.start()
    assert is_refused.wait(30)
    other.let_go()
    waiting.join(30)

    assert get_job(database, job.id).total_steps == 5


@pytest.fixture
def saved(settings: Settings, job: Job, lease: Lease) -> Saved:
    """A state that the child has just saved."""
    directory = settings.work_dir / job.id / "attempt-1"
    directory.mkdir(parents=True)
    (directory / JOB_SPEC_NAME).write_text(build_job_spec(lease).model_dump_json())
    write_checkpoint(directory, 1, name="resume")
    return Saved(step=1, directory="out/resume-1")


class CountingStore(LocalBlobStore):
    """Counts how often it is given bytes."""

    puts = 0

    def put(self, key: str, scratch: Path) -> None:
        self.puts += 1
        super().put(key, scratch)


def test_bytes_are_stored_once_however_often_the_database_is_asked(
    make: Callable[..., Attempt],
    other: OtherProcess,
    is_refused: threading.Event,
    settings: Settings,
    saved: Saved,
) -> None:
    store = CountingStore(settings.blobs_dir)
    attempt = make(store=store)
    attempt.on_event(step(1))
    other.hold()
    waiting = threading.Thread(target=attempt.on_event, args=(saved,))

    waiting.start()
    assert is_refused.wait(30)
    other.let_go()
    waiting.join(30)

    assert store.puts == len(list(store.list_all())) > 1


class FullDatabase(Database):
    """Has no space for the first two transactions."""

    refusals = 2

    @contextmanager
    def writing(self) -> Generator[Session]:
        if self.refusals:
            self.refusals -= 1
            raise StorageFullError("The disk is full.")
        with super().writing() as session:
            yield session


def test_a_database_without_space_is_asked_again(
    make: Callable[..., Attempt], settings: Settings, database: Database, job: Job
) -> None:
    full = FullDatabase(settings.resolved_database_url)

    make(database=full).on_event(Started(total_steps=5))

    full.dispose()
    assert (full.refusals, get_job(database, job.id).total_steps) == (0, 5)


def test_a_job_is_settled_once_the_database_is_free(
    make: Callable[..., Attempt],
    other: OtherProcess,
    is_refused: threading.Event,
    database: Database,
    job: Job,
) -> None:
    attempt = make()
    attempt.on_event(Failed(code="no_trainable_tokens", message="Nothing is learned."))
    other.hold()
    settling = threading.Thread(target=attempt.settle, args=(ENDED_WELL,))

    settling.start()
    assert is_refused.wait(30)
    other.let_go()
    settling.join(30)

    assert get_job(database, job.id).status is JobStatus.FAILED


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda attempt: attempt.on_event(Noted(message="x")), id="event"),
        pytest.param(lambda attempt: attempt.settle(ENDED_WELL), id="settle"),
        pytest.param(lambda attempt: attempt.end(JobError(code="x", message="y")), id="fail"),
        pytest.param(lambda attempt: attempt.end(Released("It was stopped")), id="release"),
        pytest.param(lambda attempt: attempt.begin(after_step=0), id="begin"),
    ],
)
def test_a_worker_gives_its_job_up_before_another_may_take_it(
    make: Callable[..., Attempt], other: OtherProcess, write: Callable[[Attempt], object]
) -> None:
    attempt = make(lease_s=0)
    other.hold()

    with pytest.raises(LeaseLostError):
        write(attempt)


def test_its_child_must_end_before_another_worker_may_take_the_job(
    make: Callable[..., Attempt], other: OtherProcess
) -> None:
    attempt = make(lease_s=1)
    other.hold()

    seen = [attempt.requested_signal()]
    attempt.beat()
    seen.append(attempt.requested_signal())
    wait_until(lambda: attempt.requested_signal() is Signal.KILL, within_s=1 - LEASE_MARGIN)

    assert seen == [Signal.CONTINUE, Signal.CONTINUE]


def test_a_beat_renews_the_lease_when_a_part_of_it_is_over(
    make: Callable[..., Attempt], database: Database, job: Job, clock: FrozenClock
) -> None:
    clock.advance(timedelta(seconds=30))

    make().beat()
    early = get_job(database, job.id).lease_expires_at
    make(lease_s=0).beat()

    assert early == NOW + timedelta(minutes=1)
    assert get_job(database, job.id).lease_expires_at == NOW + timedelta(seconds=30)


@pytest.mark.parametrize(
    "case",
    [
        (None, None, Signal.CONTINUE),
        ("pause", None, Signal.SAVE_AND_STOP),
        ("cancel", None, Signal.KILL),
        (None, 60, Signal.SAVE_AND_STOP),
        (None, -1, Signal.KILL),
        ("pause", -1, Signal.KILL),
        ("cancel", 60, Signal.KILL),
    ],
)
def test_a_child_is_told_what_user_and_operator_want(
    make: Callable[..., Attempt],
    database: Database,
    job: Job,
    case: tuple[str | None, float | None, Signal],
) -> None:
    action, stop_in_s, expected = case
    with database.writing() as session:
        jobs = JobRepository(session, DEFAULT_PROJECT_ID)
        if action == "pause":
            jobs.request_pause(job.id, now=NOW)
        elif action == "cancel":
            jobs.request_cancel(job.id, now=NOW)
    attempt = make(stop_at_s=None if stop_in_s is None else steady_s() + stop_in_s)

    attempt.beat()

    assert attempt.requested_signal() is expected
