"""The report of a job begins with its success, if there are answers to compare with."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import select

from app.core.base_models import Catalogue
from app.core.db.check_tables import Task
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.tasks.reports import MAX_WAITING
from app.core.db.repositories.tasks.requests import TaskRepository
from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.job.child.training_events import Checkpointed, Finished, Started, Stepped
from app.core.job.scores.report import REPORT, ReportRequest
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import (
    CHAT_LINE,
    NOW,
    add_file,
    add_job,
    build_config,
    build_metrics,
    claim,
    get_job,
    list_checkpoints,
    write_checkpoint,
)
from tests.exports import claim_task
from tests.fakes import FakeLauncher, FrozenClock
from worker.attempt.attempt import Attempt
from worker.attempt.lease_keeper import Resources
from worker.launch.launcher import Ending

ENDED = Ending(0, was_asked=False, was_killed=False, log_tail="")


class Training:
    """One job, with files of these formats."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: LocalBlobStore,
        catalogue: Catalogue,
        *,
        training: str,
        validation: str | None = None,
        eval_prompts: Sequence[str] | None = None,
        at_checkpoints: bool = False,
        steps: int = 1,
        **config: Any,
    ) -> None:
        self.database = database
        formats = [each for each in (training, validation) if each is not None]
        files = [add_file(database, store, CHAT_LINE, format=each).id for each in formats]
        self.job = add_job(
            database,
            training_file_id=files[0],
            validation_file_id=files[1] if validation else None,
            eval_prompts=eval_prompts,
            eval_prompts_at_checkpoints=at_checkpoints,
            config=build_config(max_steps=steps, **config).model_dump(mode="json"),
        )
        resources = Resources(settings, database, store, catalogue, FakeLauncher(), FrozenClock())
        self.attempt = Attempt(claim(database), resources)
        self.attempt._prepare()
        self.directory = settings.work_dir / self.job.id / "attempt-1"
        self.steps = steps

    def train(self) -> None:
        """Take every step, and publish a checkpoint of each."""
        self.attempt.on_event(Started(total_steps=self.steps))
        for step in range(1, self.steps + 1):
            self.attempt.on_event(Stepped(metrics=build_metrics(step)))
            write_checkpoint(self.directory, step)
            self.attempt.on_event(Checkpointed(step=step, directory=f"out/step-{step}"))

    def finish(self) -> None:
        self.train()
        self.attempt.on_event(Finished(step=self.steps, trained_tokens=500))
        self.attempt.settle(ENDED)

    def cancel(self) -> None:
        with self.database.writing() as session:
            JobRepository(session, self.job.project_id).request_cancel(self.job.id, now=NOW)

    def tasks(self) -> list[Task]:
        with self.database.reading() as session:
            return list(session.scalars(select(Task)))

    def reported_steps(self) -> list[int]:
        """The steps of the checkpoints that have a report, oldest first."""
        steps = {each.id: each.step for each in list_checkpoints(self.database, self.job.id)}
        return sorted(steps[task.checkpoint_id] for task in self.tasks())

    def read_job(self) -> Job:
        return get_job(self.database, self.job.id)


@pytest.mark.parametrize(
    ("training", "validation", "config", "begins"),
    [
        ("messages", "messages", {}, True),
        ("messages", None, {"validation_split": 0.5}, True),
        ("messages", None, {}, False),
        ("text", "text", {}, False),
        ("text", None, {"validation_split": 0.5}, False),
    ],
)
def test_a_report_begins_if_there_are_answers_to_compare_with(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    *,
    training: str,
    validation: str | None,
    config: dict[str, Any],
    begins: bool,
) -> None:
    run = Training(
        settings,
        database,
        store,
        catalogue,
        training=training,
        validation=validation,
        **config,
    )

    run.finish()

    assert run.read_job().status == "succeeded"
    assert [task.kind for task in run.tasks()] == [REPORT] * begins


@pytest.mark.parametrize(
    ("format_", "are_chats"), [("messages", True), ("prompt_completion", False)]
)
def test_prompts_are_read_as_those_of_the_training_file(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    *,
    format_: str,
    are_chats: bool,
) -> None:
    run = Training(settings, database, store, catalogue, training=format_, validation=format_)

    run.finish()

    (task,) = run.tasks()
    assert ReportRequest.model_validate(task.request) == ReportRequest(are_chats=are_chats)
    assert task.checkpoint_id == run.read_job().result_checkpoint_id


@pytest.mark.parametrize("validation", ["messages", None])
def test_prompts_of_the_job_are_answered(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    validation: str | None,
) -> None:
    run = Training(
        settings,
        database,
        store,
        catalogue,
        training="messages",
        validation=validation,
        eval_prompts=["Hi", "Ho"],
    )

    run.finish()

    (task,) = run.tasks()
    asked = ReportRequest.model_validate(task.request)
    assert asked == ReportRequest(prompts=("Hi", "Ho"), are_chats=True)


def test_a_job_that_is_cancelled_at_its_end_has_no_report(
    settings: Settings, database: Database, store: LocalBlobStore, catalogue: Catalogue
) -> None:
    run = Training(settings, database, store, catalogue, training="messages", validation="messages")
    run.cancel()

    run.finish()

    assert run.read_job().status == "cancelled"
    assert run.tasks() == []


@pytest.fixture
def answering(
    settings: Settings, database: Database, store: LocalBlobStore, catalogue: Catalogue
) -> Callable[..., Training]:
    """Makes jobs whose prompts are answered at each checkpoint."""

    def make(**changes: Any) -> Training:
        usual = {"training": "messages", "eval_prompts": ["Hi", "Ho"], "at_checkpoints": True}
        return Training(settings, database, store, catalogue, **(usual | changes))

    return make


def test_prompts_are_answered_at_each_checkpoint(answering: Callable[..., Training]) -> None:
    run = answering(validation="messages", steps=2)

    run.train()

    assert run.reported_steps() == [1, 2]
    requests = [ReportRequest.model_validate(task.request) for task in run.tasks()]
    assert requests == 2 * [ReportRequest(prompts=("Hi", "Ho"), are_chats=True)]


def test_prompts_wait_for_the_result_unless_checkpoints_answer(
    answering: Callable[..., Training],
) -> None:
    run = answering(at_checkpoints=False, steps=2)

    run.train()

    assert run.tasks() == []


def test_the_report_on_the_result_takes_the_place_of_that_on_its_checkpoint(
    answering: Callable[..., Training],
) -> None:
    run = answering(steps=2)
    run.train()
    before = {task.id for task in run.tasks()}

    run.attempt.on_event(Finished(step=2, trained_tokens=500))
    run.attempt.settle(ENDED)

    assert run.reported_steps() == [1, 2]
    assert len(before & {task.id for task in run.tasks()}) == 1


def test_only_the_newest_reports_of_a_job_wait(answering: Callable[..., Training]) -> None:
    run = answering(steps=MAX_WAITING + 2)

    run.train()

    assert run.reported_steps() == [3, 4, 5]


def test_a_report_that_is_being_made_does_not_wait(
    answering: Callable[..., Training], database: Database
) -> None:
    run = answering()
    run.train()
    claimed = claim_task(database)

    with database.writing() as session:
        TaskRepository(session, run.job.project_id).delete_waiting(run.job.id, REPORT, keep=0)

    assert [task.id for task in run.tasks()] == [claimed.id]


def test_a_report_is_deleted_with_its_checkpoint(answering: Callable[..., Training]) -> None:
    run = answering(steps=3, keep_checkpoints=1)

    run.train()

    assert run.reported_steps() == [3]
