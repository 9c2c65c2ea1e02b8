"""`keep_checkpoints` bounds what a job leaves on the disk, and spares what may be the result."""

from collections.abc import Callable
from typing import Any

import pytest

from app.core.base_models import Catalogue
from app.core.db.session import Database
from app.core.job.child.training_events import Checkpointed, Finished, Started, Stepped
from app.core.job.status import JobStatus
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    add_file,
    add_job,
    build_config,
    build_metrics,
    claim,
    get_job,
    list_checkpoints,
    write_checkpoint,
)
from tests.fakes import FakeLauncher, FrozenClock
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending

ENDED = Ending(0, was_asked=False, was_killed=False, log_tail="")
LOSSES = [3.0, 1.0, 2.0, 1.0, 2.0]
"""Validation losses of the steps from 1 on. The first of two equal ones is the best."""


@pytest.fixture
def train(
    database: Database, store: LocalBlobStore, catalogue: Catalogue, settings: Settings
) -> Callable[..., str]:
    """Runs a job with a checkpoint after each of five steps. Returns its id.

    Another job continues the checkpoint of the step `continued` as soon as there is one.
    """

    def train(*, result: int, continued: int | None = None, **knobs: Any) -> str:
        training_file = add_file(database, store).id
        config = build_config(max_steps=len(LOSSES), **knobs).model_dump(mode="json")
        job = add_job(database, training_file_id=training_file, config=config)
        resources = Resources(settings, database, store, catalogue, FakeLauncher(), FrozenClock())
        attempt = Attempt(claim(database), resources)
        attempt._prepare()
        directory = settings.work_dir / job.id / "attempt-1"
        attempt.on_event(Started(total_steps=len(LOSSES)))
        for step, loss in enumerate(LOSSES, start=1):
            attempt.on_event(Stepped(metrics=build_metrics(step, valid_loss=loss)))
            write_checkpoint(directory, step)
            attempt.on_event(Checkpointed(step=step, directory=f"out/step-{step}"))
            if step == continued:
                newest = list_checkpoints(database, job.id)[-1]
                add_job(database, parent_checkpoint_id=newest.id)
        left = {path.name for path in (directory / "out").iterdir()}
        kept = {f"step-{each.step}" for each in list_checkpoints(database, job.id)}
        assert left == kept
        attempt.on_event(Finished(step=result, trained_tokens=500))
        attempt.settle(ENDED)
        return job.id

    return train


@pytest.mark.parametrize(
    ("knobs", "result", "kept"),
    [
        ({}, 5, [1, 2, 3, 4, 5]),
        ({"keep_checkpoints": 9}, 5, [1, 2, 3, 4, 5]),
        ({"keep_checkpoints": 2}, 5, [4, 5]),
        ({"keep_checkpoints": 1, "checkpoint_choice": "final"}, 5, [5]),
        ({"keep_checkpoints": 1, "checkpoint_choice": "best"}, 2, [2]),
        ({"keep_checkpoints": 3, "checkpoint_choice": "best"}, 2, [2, 4, 5]),
        ({"keep_checkpoints": 2, "early_stopping_patience": 3}, 2, [2, 5]),
    ],
)
def test_the_oldest_checkpoints_are_deleted_but_never_the_result(
    database: Database,
    store: LocalBlobStore,
    train: Callable[..., str],
    *,
    knobs: dict[str, Any],
    result: int,
    kept: list[int],
) -> None:
    job_id = train(result=result, **knobs)

    checkpoints = list_checkpoints(database, job_id)
    job = get_job(database, job_id)
    assert [checkpoint.step for checkpoint in checkpoints] == kept
    assert job.status is JobStatus.SUCCEEDED
    (chosen,) = [each for each in checkpoints if each.id == job.result_checkpoint_id]
    assert chosen.step == result
    stored = {blob.key for blob in store.list_all() if "/step-" in blob.key}
    assert {key.rpartition("/step-")[2].partition("/")[0] for key in stored} == set(map(str, kept))


def test_a_checkpoint_that_another_job_continues_stays(
    database: Database, train: Callable[..., str]
) -> None:
    job_id = train(result=5, keep_checkpoints=1, continued=2)

    assert [checkpoint.step for checkpoint in list_checkpoints(database, job_id)] == [2, 5]
