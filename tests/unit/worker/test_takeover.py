"""What an attempt writes: nothing once its job is another's, and otherwise every step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import Catalogue
from app.core.clock import steady_s
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.errors import LeaseLostError
from app.core.job.child.training_events import (
    Checkpointed,
    Failed,
    Finished,
    JobError,
    Noted,
    Planned,
    Saved,
    Started,
    Stepped,
    TrainingEvent,
    Unresumable,
)
from app.core.job.loss_log import csv_texts
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    MINUTE,
    NOW,
    add_file,
    add_job,
    build_base_metrics,
    build_config,
    build_metrics,
    claim,
    dump_tables,
    get_job,
    list_checkpoints,
    write_checkpoint,
)
from tests.fakes import FakeLauncher, FrozenClock
from worker.attempt.attempt import Attempt
from worker.attempt.endings import Released
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending, Signal

ENDED = Ending(0, was_asked=False, was_killed=False, log_tail="")
CRASHED = Ending(1, was_asked=False, was_killed=False, log_tail="")


def stepped(step: int) -> Stepped:
    return Stepped(metrics=build_metrics(step))


@pytest.fixture
def job(database: Database, store: LocalBlobStore) -> Job:
    config = build_config(max_steps=9).model_dump(mode="json")
    return add_job(database, training_file_id=add_file(database, store).id, config=config)


@pytest.fixture
def attempt(
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    settings: Settings,
    job: Job,
) -> Attempt:
    lease = claim(database)
    assert lease.job_id == job.id
    return Attempt(
        lease, Resources(settings, database, store, catalogue, FakeLauncher(), FrozenClock())
    )


def steal(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Another worker takes the job over. Returns all that the database then holds."""
    later = NOW + 2 * MINUTE
    with database.writing() as session:
        RecoveryRepository(session).rescue_expired(now=later)
    claim(database, "worker-2", now=later)
    return dump_tables(database)


@pytest.fixture
def directory(attempt: Attempt, job: Job, settings: Settings) -> Path:
    """The job directory of the first attempt, filled."""
    attempt._prepare()
    return settings.work_dir / job.id / "attempt-1"


TWO_STEPS = [Started(total_steps=3), stepped(1), stepped(2)]
"""The second step is not written to the database at once."""


@pytest.mark.parametrize(
    ("first", "last"),
    [
        pytest.param(TWO_STEPS, Noted(message="unheard"), id="noted"),
        pytest.param([], Planned(total_steps=5), id="planned"),
        pytest.param([], Started(total_steps=5), id="started"),
        pytest.param(TWO_STEPS, Checkpointed(step=1, directory="out/step-1"), id="checkpointed"),
        pytest.param(TWO_STEPS, Saved(step=2, directory="out/resume-2"), id="saved"),
        pytest.param(TWO_STEPS, Finished(step=1, trained_tokens=1), id="finished"),
        pytest.param(TWO_STEPS, Failed(code="invalid_file", message="bad"), id="failed"),
    ],
)
def test_nothing_is_written_of_a_job_that_another_worker_has_taken_over(
    database: Database,
    attempt: Attempt,
    directory: Path,
    first: list[TrainingEvent],
    last: TrainingEvent,
) -> None:
    for event in first:
        attempt.on_event(event)
    write_checkpoint(directory, 1)
    write_checkpoint(directory, 2, name="resume")
    left = steal(database)

    writes = [
        lambda: attempt.on_event(last),
        lambda: attempt.begin(after_step=0),
        lambda: attempt.end(Released("The worker was stopped")),
        lambda: attempt.settle(CRASHED),
        lambda: attempt.end(Unresumable(step=1, message="bad")),
        lambda: attempt.end(JobError(code="internal_error", message="bad")),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    attempt.beat()

    assert attempt.requested_signal() is Signal.KILL
    assert dump_tables(database) == left


def test_a_worker_that_slept_since_its_claim_lets_go_of_the_job(
    database: Database, store: LocalBlobStore, catalogue: Catalogue, settings: Settings, job: Job
) -> None:
    """The next attempt may have begun, and this one would kill its training process."""
    lease = replace(claim(database), claimed_s=steady_s() - settings.lease_s)
    left = steal(database)
    acts: list[TrainingEvent] = []
    launcher = FakeLauncher(acts=[lambda _: acts.append(stepped(1))])

    attempt = Attempt(lease, Resources(settings, database, store, catalogue, launcher))
    assert attempt.requested_signal() is Signal.KILL
    attempt.run()

    assert acts == []
    assert dump_tables(database) == left


def test_after_an_early_stop_the_best_step_is_published_after_later_ones(
    database: Database, attempt: Attempt, directory: Path, job: Job
) -> None:
    attempt.on_event(Started(total_steps=9))
    for step in range(1, 6):
        attempt.on_event(stepped(step))
    write_checkpoint(directory, 2)

    attempt.on_event(Checkpointed(step=2, directory="out/step-2"))
    attempt.on_event(Finished(step=2, trained_tokens=500))
    attempt.settle(ENDED)

    job = get_job(database, job.id)
    assert (job.status, job.trained_steps) == (JobStatus.SUCCEEDED, 5)
    (checkpoint,) = list_checkpoints(database, job.id)
    assert (checkpoint.id, checkpoint.step) == (job.result_checkpoint_id, 2)
    assert checkpoint.metrics == build_metrics(2).model_dump()


def test_the_result_file_has_every_step_but_not_the_base_model(
    database: Database,
    store: LocalBlobStore,
    attempt: Attempt,
    directory: Path,
    job: Job,
) -> None:
    attempt.on_event(Started(total_steps=3))
    attempt.on_event(Stepped(metrics=build_base_metrics()))
    for step in (1, 2, 3):
        attempt.on_event(stepped(step))
    write_checkpoint(directory, 3)
    attempt.on_event(Checkpointed(step=3, directory="out/step-3"))
    attempt.on_event(Finished(step=3, trained_tokens=300))

    attempt.settle(ENDED)

    result_file_id = get_job(database, job.id).result_file_id
    assert result_file_id is not None
    with database.reading() as session:
        file = FileRepository(session, DEFAULT_PROJECT_ID).get(result_file_id, now=NOW)
    with store.open(file.blob_key) as blob:
        content = blob.read().decode()
    assert content == "".join(csv_texts([[build_metrics(step) for step in (1, 2, 3)]]))
