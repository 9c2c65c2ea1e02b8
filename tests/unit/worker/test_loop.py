"""One turn of the worker at a time: what becomes of a job, for every way its child can end."""

import errno
import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from sqlalchemy import event

from app.core.access import DEFAULT_PROJECT_ID, LOCAL_CALLER
from app.core.base_models import Catalogue
from app.core.db.repositories.checkpoints import CheckpointRepository, TunedModelRepository
from app.core.db.repositories.events import EventRepository
from app.core.db.repositories.files import FileRepository
from app.core.db.repositories.jobs import JobRepository
from app.core.db.repositories.recovery import RecoveryRepository
from app.core.db.repositories.workers import WorkerState, WorkerStatus
from app.core.db.session import Database, Session
from app.core.db.tables import Checkpoint, Job
from app.core.errors import DatabaseBusyError
from app.core.job.child.training_events import (
    Checkpointed,
    Failed,
    Finished,
    MemoryShort,
    Noted,
    OutOfSpace,
    Planned,
    Saved,
    Started,
    Stepped,
    Unresumable,
)
from app.core.job.status import JobStatus
from app.core.machine.memory import measure_memory
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from app.services.resuming.reruns import rerun_job
from tests.builders import (
    NOW,
    TEXT_LINE,
    add_file,
    add_job,
    build_config,
    build_metrics,
    get_job,
    list_workers,
    lock_out_writers,
    pass_checks,
    put_blob,
    write_checkpoint,
)
from tests.fakes import Act, FakeLauncher, FrozenClock, Waiting
from tests.waiting import wait_until
from worker.attempt.lease_keeper import Resources
from worker.janitor import Janitor
from worker.launch.locks import TrainingSlots
from worker.loop import PAUSE_AFTER_FAILURE_S, Worker

LINES = TEXT_LINE * 3
WEEK = timedelta(days=7)
OUT_OF_MEMORY = "The process was killed, most likely because the machine ran out of memory"


class Bench:
    """A worker with a fake child, and what a test wants to know of its jobs afterwards."""

    def __init__(
        self,
        settings: Settings,
        *,
        database: Database,
        store: LocalBlobStore,
        catalogue: Catalogue,
        clock: FrozenClock,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = store
        self.clock = clock
        self.launcher = FakeLauncher()
        self.resources = Resources(settings, database, store, catalogue, self.launcher, clock)
        self.janitor = Janitor(settings, database=database, store=store, clock=clock)
        self.worker = self.build_worker("worker-1")

    def build_worker(self, worker_id: str, **changes: Any) -> Worker:
        """A worker whose resources differ in this."""
        resources = replace(self.resources, **changes)
        return Worker(worker_id, resources, self.janitor.run_if_due)

    def replace_worker(self, **changes: Any) -> None:
        """Have another worker whose resources differ in this."""
        self.worker = self.build_worker("worker-1", **changes)

    def add_job(self, **changes: Any) -> Job:
        """A job in the queue, with its training file in the store."""
        file = add_file(self.database, self.store, LINES)
        changes = {"config": build_config(max_steps=100).model_dump(mode="json")} | changes
        return add_job(self.database, training_file_id=file.id, **changes)

    def run(self, *acts: Act, exit_code: int = 0, log_tail: str = "") -> float:
        """One turn, in which a child does this."""
        self.launcher.acts = acts
        self.launcher.exit_code = exit_code
        self.launcher.log_tail = log_tail
        return self.worker.run_once()

    def job(self, job: Job) -> Job:
        return get_job(self.database, job.id)

    def messages(self, job: Job) -> list[str]:
        with self.database.reading() as session:
            page = EventRepository(session, DEFAULT_PROJECT_ID).list_page(
                job.id, after=None, limit=100
            )
            return [event.message for event in page.rows]

    def steps(self, job: Job) -> list[int]:
        with self.database.reading() as session:
            return [
                row.step for row in JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id)
            ]

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        with self.database.reading() as session:
            return (
                CheckpointRepository(session, DEFAULT_PROJECT_ID)
                .list_page(job.id, after=None, limit=100)
                .rows
            )

    def blobs(self) -> list[str]:
        """Every key below `jobs/`."""
        root = self.settings.blobs_dir
        paths = (root / "jobs").rglob("*")
        return sorted(str(path.relative_to(root)) for path in paths if path.is_file())

    def read(self, key: str) -> bytes:
        with self.store.open(key) as blob:
            return blob.read()


@pytest.fixture
def bench(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    catalogue: Catalogue,
    clock: FrozenClock,
) -> Bench:
    return Bench(settings, database=database, store=store, catalogue=catalogue, clock=clock)


def stepped(step: int, **changes: Any) -> Stepped:
    return Stepped(metrics=build_metrics(step, **changes))


def checkpointed(step: int, **changes: Any) -> Callable[[Path], Checkpointed]:
    """Write a checkpoint, with these changes to its manifest, and report it."""

    def act(directory: Path) -> Checkpointed:
        write_checkpoint(directory, step, **changes)
        return Checkpointed(step=step, directory=f"out/step-{step}")

    return act


def success(steps: int = 2) -> Sequence[Act]:
    """What a child does whose training goes well."""
    return [
        Started(total_steps=steps),
        *(stepped(step) for step in range(1, steps + 1)),
        checkpointed(steps),
        Finished(step=steps, trained_tokens=100 * steps),
    ]


def test_an_empty_queue_is_asked_again_after_a_while(bench: Bench) -> None:
    assert bench.run() == bench.settings.poll_interval_s
    assert bench.launcher.directories == []


def test_an_idle_worker_preloads_and_one_that_has_a_job_does_not(bench: Bench) -> None:
    bench.add_job()

    bench.run(*success())
    assert not bench.launcher.has_preloaded

    bench.run()
    assert bench.launcher.has_preloaded


def test_no_worker_preloads_while_another_of_the_machine_trains(bench: Bench) -> None:
    bench.replace_worker(settings=bench.settings.model_copy(update={"concurrency": 2}))

    with TrainingSlots(bench.settings.workers_dir, 2).take():
        bench.run()
        assert not bench.launcher.has_preloaded

    bench.run()
    assert bench.launcher.has_preloaded


def test_an_idle_worker_waits_for_no_writer(bench: Bench) -> None:
    bench.worker = Worker("worker-1", bench.resources, lambda: None)  # no chore is due
    bench.run()

    with bench.database.writing() as session:
        lock_out_writers(session)
        assert bench.run() == bench.settings.poll_interval_s


def test_looking_at_an_empty_queue_takes_no_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is taken, an export or a report is stopped for most of the time."""
    monkeypatch.setattr(TrainingSlots, "take", lambda _: pytest.fail("a slot was taken"))

    bench.run()


def test_the_first_step_is_shown_at_once(bench: Bench) -> None:
    job = bench.add_job()
    seen: list[tuple[list[int], int]] = []

    def look(_directory: Path) -> None:
        seen.append((bench.steps(job), bench.job(job).trained_steps))

    bench.run(Started(total_steps=3), stepped(1), look, stepped(2), look)

    assert seen == [([1], 1)] * 2


def test_the_number_of_steps_is_known_before_the_model_is_loaded(bench: Bench) -> None:
    job = bench.add_job()
    seen: list[int | None] = []

    def look(_directory: Path) -> None:
        seen.append(bench.job(job).total_steps)

    bench.run(look, Planned(total_steps=3), look)

    assert seen == [None, 3]


@pytest.mark.parametrize(("steps", "announced"), [(3000, [3000]), (3001, [])])
def test_a_line_of_the_data_may_become_a_thousand_steps(
    bench: Bench, steps: int, announced: list[int | None]
) -> None:
    job = bench.add_job(config=build_config(epochs=1, batch_size=1).model_dump(mode="json"))
    seen: list[int | None] = []

    bench.run(Planned(total_steps=steps), lambda _: seen.append(bench.job(job).total_steps))

    assert seen == announced


def test_loading_is_announced_before_it_begins(bench: Bench) -> None:
    job = bench.add_job()
    seen: list[list[str]] = []

    bench.run(lambda _: seen.append(bench.messages(job)[:2]))

    assert seen == [["Loading base model tiny", "Fine-tuning job started"]]


def test_after_a_job_the_queue_is_asked_at_once(bench: Bench) -> None:
    bench.add_job()

    assert bench.run(*success()) == 0.0


def test_a_child_that_finishes_leaves_a_job_with_its_results(bench: Bench) -> None:
    job = bench.add_job()

    bench.run(*success())

    done = bench.job(job)
    assert (done.status, done.error, done.finished_at) == (JobStatus.SUCCEEDED, None, NOW)
    assert (done.trained_tokens, done.trained_steps, done.total_steps) == (200, 2, 2)
    (checkpoint,) = bench.checkpoints(job)
    assert done.result_checkpoint_id == checkpoint.id
    assert [file.filename for file in checkpoint.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "manifest.json.sig",
    ]
    assert bench.read(checkpoint.files[1].blob_key) == b"\2" * 5000
    with bench.database.reading() as session:
        model = TunedModelRepository(session, DEFAULT_PROJECT_ID).get(job.fine_tuned_model)
        assert (model.job_id, model.checkpoint_id) == (job.id, checkpoint.id)
        assert done.result_file_id is not None
        result = FileRepository(session, DEFAULT_PROJECT_ID).get(done.result_file_id, now=NOW)
    assert bench.read(result.blob_key).decode().splitlines()[1].startswith("1,3.0,0.5,")
    assert bench.messages(job)[:3] == [
        "The job has successfully completed",
        f"New fine-tuned model created: {job.fine_tuned_model}",
        f"Checkpoint created at step 2: {job.fine_tuned_model}:ckpt-step-2",
    ]


def test_the_log_says_in_one_line_how_a_job_has_ended(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job, bad = bench.add_job(), bench.add_job()

    bench.run(*success())
    bench.run(Started(total_steps=5), stepped(1), Failed(code="loss_not_finite", message="Lower."))

    ends = [vars(one) for one in caplog.records if one.getMessage() == "job ended"]
    good_end, bad_end = ends
    assert (good_end["job_id"], good_end["status"]) == (job.id, "succeeded")
    assert (good_end["steps"], good_end["total_steps"], good_end["attempt"]) == (2, 2, 1)
    assert good_end["train_loss"] == bench.job(job).train_loss
    assert good_end["seconds"] >= 0
    assert "code" not in good_end
    assert (bad_end["job_id"], bad_end["status"]) == (bad.id, "failed")
    assert (bad_end["code"], bad_end["steps"]) == ("loss_not_finite", 1)


def test_the_log_tells_an_attempt_that_ended_from_a_job_that_did(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.add_job()

    bench.run(stepped(1), exit_code=1)

    (end,) = [vars(one) for one in caplog.records if one.getMessage() == "attempt ended"]
    assert end["status"] == "queued"


def test_the_log_tells_progress_but_not_of_every_step(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.add_job()
    bench.run(*success())
    assert "step 2/2" not in caplog.text

    bench.replace_worker(progress_interval_s=0.0)
    bench.add_job()
    bench.run(*success())

    assert "step 2/2" in caplog.text


def test_everything_of_a_success_appears_in_one_moment(bench: Bench) -> None:
    """Other services say `succeeded` first, and name the model up to two minutes later."""
    job = bench.add_job()
    seen: list[tuple[str, bool]] = []

    def look(_directory: Path) -> None:
        with bench.database.reading() as session:
            found = JobRepository(session, DEFAULT_PROJECT_ID).get(job.id)
            model = TunedModelRepository(session, DEFAULT_PROJECT_ID).find(job.fine_tuned_model)
            seen.append((found.status, found.result_file_id is not None or model is not None))

    bench.run(*success(), look)
    look(Path())

    assert seen == [("running", False), ("succeeded", True)]


def test_the_child_gets_a_directory_with_all_it_needs_and_nothing_stays(bench: Bench) -> None:
    validation = add_file(bench.database, bench.store, TEXT_LINE)
    job = bench.add_job(validation_file_id=validation.id)
    seen: dict[str, Any] = {}

    def look(directory: Path) -> None:
        seen["names"] = sorted(path.name for path in directory.iterdir())
        seen["train"] = (directory / "train.jsonl").read_bytes()
        seen["validation"] = (directory / "validation.jsonl").read_bytes()
        seen["base model"] = (directory / "base-model").resolve()
        seen["spec"] = json.loads((directory / "job.json").read_bytes())

    bench.run(look)

    assert seen["names"] == [
        "base-model", "job.json", "machine-cache", "out", "project-cache", "train.jsonl",
        "validation.jsonl",
    ]  # fmt: skip
    assert (seen["train"], seen["validation"]) == (LINES, TEXT_LINE)
    assert seen["base model"] == (bench.settings.data_dir / "models/tiny").resolve()
    spec = seen["spec"]
    assert (spec["job_id"], spec["attempt"], spec["threads"]) == (job.id, 1, 1)
    assert spec["base_model"]["repo"] == "our-tiny"
    assert spec["training_file"]["examples"] == 3
    assert spec["config"]["seed"] == 7
    assert list(bench.settings.work_dir.iterdir()) == []


def test_a_note_of_the_child_is_an_event(bench: Bench) -> None:
    job = bench.add_job()

    bench.run(Noted(level="warn", message="3 examples are cut off."))

    assert "3 examples are cut off." in bench.messages(job)


def test_a_child_that_says_what_is_wrong_leaves_a_failed_job_with_the_reason(
    bench: Bench,
) -> None:
    job = bench.add_job()
    failed = Failed(
        code="no_trainable_tokens", message="No token is learned.", param="training_file"
    )

    bench.run(Started(total_steps=5), stepped(1), failed)

    done = bench.job(job)
    assert (done.status, done.finished_at) == (JobStatus.FAILED, NOW)
    assert done.error == {
        "code": "no_trainable_tokens",
        "message": "No token is learned.",
        "param": "training_file",
        "errors": [],
    }
    assert bench.messages(job)[0] == "The job failed: No token is learned."
    assert bench.steps(job) == [1]


@pytest.mark.parametrize(
    ("exit_code", "why"),
    [
        (-9, OUT_OF_MEMORY),
        (-11, "The process died of SIGSEGV"),
        (-40, "The process died of signal 40"),
        (1, "The process ended with exit code 1"),
        (0, "The process ended with exit code 0"),
    ],
)
def test_a_child_that_dies_twice_leaves_a_failed_job_with_the_last_line_of_its_log(
    bench: Bench, exit_code: int, why: str
) -> None:
    job = bench.add_job()

    log = "Traceback ...\nOSError: /srv/tunery/x is full\n"
    bench.run(stepped(1), exit_code=exit_code, log_tail=log)
    first = bench.job(job).status, bench.messages(job)[0]
    bench.run(stepped(1), exit_code=exit_code, log_tail=log)

    assert first == (
        JobStatus.QUEUED,
        (
            f"{why}; the job is queued again and will start from its first step. The last line of "
            "its log: OSError: [path] is full"
        ),
    )
    done = bench.job(job)
    assert done.status is JobStatus.FAILED
    assert done.error is not None
    assert done.error["code"] == "training_crashed"
    assert done.error["message"].startswith(f"{why}, 2 times without progress. ")
    assert done.error["message"].endswith(" The last line of its log: OSError: [path] is full")


def test_a_child_that_dies_after_its_last_word_has_not_succeeded(bench: Bench) -> None:
    job = bench.add_job()

    bench.run(*success(), exit_code=1)

    assert bench.job(job).status is JobStatus.QUEUED


def test_the_worker_goes_on_with_the_next_job(bench: Bench) -> None:
    first, second = bench.add_job(), bench.add_job()

    for _ in range(2):
        bench.run(exit_code=-9)
    bench.run(*success())

    assert bench.job(first).status is JobStatus.FAILED
    assert bench.job(second).status is JobStatus.SUCCEEDED


def test_a_job_cancelled_while_it_runs_keeps_its_log_and_its_checkpoints(bench: Bench) -> None:
    job = bench.add_job()

    def cancel(_directory: Path) -> None:
        with bench.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=bench.clock())

    bench.run(Started(total_steps=9), stepped(1), checkpointed(1), stepped(2), cancel, Waiting())

    done = bench.job(job)
    assert (done.status, done.error, done.finished_at) == (JobStatus.CANCELLED, None, NOW)
    assert bench.steps(job) == [1, 2]
    assert [checkpoint.step for checkpoint in bench.checkpoints(job)] == [1]
    assert bench.messages(job)[0] == "Fine-tuning job cancelled"


def test_a_cancel_wins_over_a_success_that_comes_later(bench: Bench) -> None:
    job = bench.add_job()

    def cancel(_directory: Path) -> None:
        with bench.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).request_cancel(job.id, now=bench.clock())

    *most, finished = success()
    bench.run(*most, lambda directory: cancel(directory) or finished)

    done = bench.job(job)
    assert (done.status, done.result_file_id) == (JobStatus.CANCELLED, None)
    assert [key for key in bench.blobs() if "step_metrics.csv" in key] == []
    with bench.database.reading() as session:
        assert TunedModelRepository(session, DEFAULT_PROJECT_ID).list_all() == []


def test_a_stopped_worker_puts_its_job_back_and_starts_no_other(bench: Bench) -> None:
    running, waiting = bench.add_job(), bench.add_job()

    bench.run(stepped(1), lambda _directory: bench.worker.stop(), Waiting())
    bench.worker.run()

    assert [bench.job(job).status for job in (running, waiting)] == [JobStatus.QUEUED] * 2
    assert bench.job(waiting).attempt == 0
    assert bench.messages(running)[0] == (
        "The worker was stopped; the job is queued again and will start from its first step"
    )


def rescue(bench: Bench) -> None:
    with bench.database.writing() as session:
        RecoveryRepository(session).rescue_expired(now=NOW + timedelta(hours=1))


def saved(step: int) -> Callable[[Path], Saved]:
    """Save a state and report it."""

    def act(directory: Path) -> Saved:
        write_checkpoint(directory, step, name="resume")
        return Saved(step=step, directory=f"out/resume-{step}")

    return act


def saved_with_checkpoint(step: int) -> Callable[[Path], Checkpointed]:
    def act(directory: Path) -> Checkpointed:
        write_checkpoint(directory, step)
        write_checkpoint(directory, step, name="resume")
        state = f"out/resume-{step}"
        return Checkpointed(step=step, directory=f"out/step-{step}", state=state)

    return act


def look_at_resumption(seen: dict[str, Any]) -> Callable[[Path], None]:
    """Note what the child of the next attempt finds."""

    def look(directory: Path) -> None:
        spec = json.loads((directory / "job.json").read_bytes())
        seen["resume_step"] = spec["resume_step"]
        if spec["resume_step"]:
            seen["state"] = (directory / "resume/adapter_model.safetensors").read_bytes()
            log = (directory / "loss-log.jsonl").read_text().splitlines()
            seen["log"] = [json.loads(line)["step"] for line in log]

    return look


def test_the_next_attempt_goes_on_from_the_newest_state(bench: Bench) -> None:
    job = bench.add_job()
    seen: dict[str, Any] = {}

    steps = [stepped(step) for step in (1, 2, 3, 4)]
    bench.run(Started(total_steps=5), *steps[:2], saved_with_checkpoint(2), *steps[2:], exit_code=1)
    bench.run(
        look_at_resumption(seen), Started(total_steps=5), stepped(3), stepped(4), saved(4),
        exit_code=1,
    )  # fmt: skip
    bench.run(Started(total_steps=5), stepped(5), saved_with_checkpoint(5),
              Finished(step=5, trained_tokens=500))  # fmt: skip

    assert seen == {"resume_step": 2, "state": b"\2" * 5000, "log": [1, 2]}
    done = bench.job(job)
    assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 3, 0)
    assert bench.steps(job) == [1, 2, 3, 4, 5]
    assert [one.step for one in bench.checkpoints(job)] == [5, 2]
    told = bench.messages(job)
    assert "Fine-tuning job resumed after step 2" in told
    assert "Fine-tuning job resumed after step 4" in told


def test_a_rerun_from_a_saved_state_finds_it_and_ends_with_the_whole_loss_log(
    bench: Bench, catalogue: Catalogue
) -> None:
    failed = bench.add_job()
    bench.run(Started(total_steps=3), stepped(1), saved_with_checkpoint(1), stepped(2), exit_code=1)
    bench.run(exit_code=1)
    with bench.database.writing() as session:
        job = rerun_job(
            session,
            LOCAL_CALLER,
            failed.id,
            catalogue=catalogue,
            organization="tunery",
            held_for=WEEK,
            now=NOW,
        )
    pass_checks(bench.database)
    seen: dict[str, Any] = {}
    again: dict[str, Any] = {}

    bench.run(look_at_resumption(seen), Started(total_steps=3), stepped(2), saved(2), exit_code=1)
    bench.run(look_at_resumption(again), Started(total_steps=3), stepped(3), checkpointed(3),
              Finished(step=3, trained_tokens=300))  # fmt: skip

    assert bench.job(failed).status is JobStatus.FAILED
    assert seen == {"resume_step": 1, "state": b"\1" * 5000, "log": [1]}
    assert (again["resume_step"], bench.job(job).status) == (2, JobStatus.SUCCEEDED)
    assert bench.steps(job) == [1, 2, 3]
    assert bench.steps(failed) == [1]
    assert [one.step for one in bench.checkpoints(failed)] == [1]


def test_a_state_that_is_damaged_is_passed_over(bench: Bench) -> None:
    job = bench.add_job()
    seen: dict[str, Any] = {}
    bench.run(Started(total_steps=5), stepped(1), saved(1), stepped(2), saved(2), exit_code=1)
    (damaged,) = [key for key in bench.blobs() if key.endswith("resume-2/adapter_config.json")]
    put_blob(bench.store, damaged, b"{}")

    bench.run(look_at_resumption(seen), stepped(2), saved(2), exit_code=1)

    assert seen == {"resume_step": 1, "state": b"\1" * 5000, "log": [1]}
    assert bench.steps(job) == [1, 2]


def test_a_state_that_its_child_cannot_go_on_from_is_dropped(bench: Bench) -> None:
    job = bench.add_job()
    seen: list[dict[str, Any]] = [{}, {}]
    bench.run(Started(total_steps=5), stepped(1), saved(1), stepped(2), saved(2), exit_code=1)

    bench.run(Unresumable(step=2, message="It is of another version."))
    bench.run(look_at_resumption(seen[0]), Unresumable(step=1, message="So is this."))
    bench.run(look_at_resumption(seen[1]), *success())

    assert (seen[0]["resume_step"], seen[1]["resume_step"]) == (1, None)
    assert not [key for key in bench.blobs() if "attempt-1/resume-" in key]
    done = bench.job(job)
    assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 4, 1)
    told = "The state saved at step 2 cannot be resumed"
    assert f"{told}: It is of another version." in bench.messages(job)
    assert f"{told}; the job is queued again and will resume after step 1" in bench.messages(job)


class BadSector(LocalBlobStore):
    """Cannot read the state of step 2."""

    def open(self, key: str) -> BinaryIO:
        if "resume-2" in key:
            raise OSError(errno.EIO, "Input/output error")
        return super().open(key)


def test_a_state_on_a_bad_sector_is_passed_over(bench: Bench) -> None:
    job = bench.add_job()
    seen: dict[str, Any] = {}
    bench.run(Started(total_steps=5), stepped(1), saved(1), stepped(2), saved(2), exit_code=1)
    bench.replace_worker(store=BadSector(bench.settings.blobs_dir))

    bench.run(look_at_resumption(seen))

    assert seen["resume_step"] == 1
    assert bench.steps(job) == [1]


def test_a_checkpoint_that_is_made_again_is_kept_as_it_was(bench: Bench) -> None:
    """It is the same to the bit; whoever has begun to download it must be able to go on."""
    job = bench.add_job()
    bench.run(Started(total_steps=2), stepped(1), checkpointed(1), exit_code=1)
    (before,) = bench.checkpoints(job)

    bench.run(Started(total_steps=2), stepped(1), checkpointed(1), stepped(2), checkpointed(2))

    first, second = reversed(bench.checkpoints(job))
    assert (first.id, first.attempt, second.attempt) == (before.id, 1, 2)
    assert [key for key in bench.blobs() if "attempt-2/step-1/" in key] == []


def test_a_paused_job_gives_its_worker_free_and_goes_on_where_it_was(bench: Bench) -> None:
    job = bench.add_job()
    seen: dict[str, Any] = {}

    def pause(_directory: Path) -> None:
        with bench.database.writing() as session:
            JobRepository(session, DEFAULT_PROJECT_ID).request_pause(job.id, now=NOW)

    bench.run(Started(total_steps=3), stepped(1), saved(1), pause, Waiting())
    paused, told = bench.job(job), bench.messages(job)[0]
    assert bench.run() == bench.settings.poll_interval_s
    with bench.database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).resume(job.id, now=NOW)
    bench.run(look_at_resumption(seen))

    assert (paused.status, paused.pause_requested_at) == (JobStatus.PAUSED, None)
    assert told == "Fine-tuning job paused after step 1"
    assert seen["resume_step"] == 1


def test_a_full_disk_does_not_end_the_job_and_is_not_tried_again_at_once(bench: Bench) -> None:
    job = bench.add_job()

    full = OutOfSpace(message="The disk is full")
    idle_s = [bench.run(Started(total_steps=3), stepped(1), full)]
    idle_s.append(bench.run(Started(total_steps=3), stepped(1), fill_the_disk))

    done = bench.job(job)
    assert (done.status, done.crashes, done.interruptions) == (JobStatus.QUEUED, 0, 2)
    told = "The disk is full; the job is queued again and will start from its first step"
    assert bench.messages(job).count(told) == 2
    assert idle_s == [PAUSE_AFTER_FAILURE_S] * 2


def fill_the_disk(_directory: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_job_without_memory_waits_and_counts_as_no_interruption(bench: Bench) -> None:
    job = bench.add_job()
    short = MemoryShort(
        message="The job needs more.", device="cpu", needed_bytes=2**59, total_bytes=2**60
    )

    idle_s = [bench.run(short), bench.run(*success())]

    done = bench.job(job)
    assert (done.status, done.attempt, done.interruptions) == (JobStatus.QUEUED, 1, 0)
    assert done.waiting_reason == "The job needs more."
    assert idle_s == [PAUSE_AFTER_FAILURE_S, bench.settings.poll_interval_s]


def test_a_worker_leaves_a_job_to_others_that_needs_the_memory_of_its_sampler(
    bench: Bench,
) -> None:
    job = bench.add_job(needed_memory_bytes=measure_memory().total)
    shared = {"sampling": "shared", "sampling_memory_bytes": 64 * 1024**2}
    bench.replace_worker(settings=bench.settings.model_copy(update=shared))
    assert bench.run(*success()) == bench.settings.poll_interval_s
    assert bench.job(job).status is JobStatus.QUEUED

    bench.replace_worker(settings=bench.settings)
    bench.run(*success())
    assert bench.job(job).status is JobStatus.SUCCEEDED


def test_another_base_model_of_the_same_name_ends_the_job(bench: Bench) -> None:
    job = bench.add_job(base_model_sha256="1" * 64)

    bench.run(*success())

    done = bench.job(job)
    assert done.error is not None
    assert done.error["code"] == "base_model_changed"
    assert bench.launcher.directories == []


def test_a_second_worker_of_the_machine_is_a_stand_by(bench: Bench) -> None:
    bench.add_job()
    waiting = bench.add_job()
    stand_by = bench.build_worker("worker-2", launcher=FakeLauncher())
    idle_s: list[float] = []

    bench.run(lambda _directory: idle_s.append(stand_by.run_once()))

    assert idle_s == [bench.settings.poll_interval_s]
    assert bench.job(waiting).status is JobStatus.QUEUED


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(Started(total_steps=5), id="started"),
        pytest.param(Noted(message="from the dead"), id="noted"),
        pytest.param(checkpointed(1), id="checkpointed"),
        pytest.param(Finished(step=1, trained_tokens=1), id="finished"),
        pytest.param(Failed(code="x", message="from the dead"), id="failed"),
        pytest.param(Waiting(), id="ticked"),
    ],
)
def test_a_worker_that_has_lost_its_job_writes_nothing_more(bench: Bench, act: Act) -> None:
    bench.replace_worker(flush_interval_s=0.0)  # no step is left to be refused
    job = bench.add_job()
    before: list[Any] = []

    def lose(_directory: Path) -> None:
        rescue(bench)
        before.append(dump(bench, job))

    after_losing = act if isinstance(act, Waiting) else lambda d: lose(d) or resolve(act, d)
    acts = [lose, act] if isinstance(act, Waiting) else [after_losing]
    bench.run(stepped(1), *acts)

    assert dump(bench, job) == before[0]
    assert bench.job(job).status is JobStatus.QUEUED


def resolve(act: Act, directory: Path) -> Any:
    return act(directory) if callable(act) else act


def dump(bench: Bench, job: Job) -> list[Any]:
    row = bench.job(job)
    columns = {column.key: getattr(row, column.key) for column in row.__table__.columns}
    return [columns, bench.messages(job), bench.steps(job), len(bench.checkpoints(job))]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(checkpointed(2, files={}), id="a file that is not in the manifest"),
        pytest.param(
            lambda _directory: Checkpointed(step=2, directory="out/step-2"), id="no directory"
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_it_promises_is_not_published(
    bench: Bench, broken: Act
) -> None:
    job = bench.add_job()

    bench.run(Started(total_steps=2), stepped(1), stepped(2), broken)

    done = bench.job(job)
    assert (done.status, bench.checkpoints(job)) == (JobStatus.FAILED, [])
    assert done.error is not None
    assert done.error["code"] == "training_protocol_violated"


def test_a_link_in_a_checkpoint_leads_nowhere(bench: Bench) -> None:
    job = bench.add_job()

    def link(directory: Path) -> Checkpointed:
        write_checkpoint(directory, 1)
        (directory / "out/step-1/secret").symlink_to("/etc/passwd")
        return Checkpointed(step=1, directory="out/step-1")

    bench.run(Started(total_steps=1), stepped(1), link)

    assert bench.job(job).status is JobStatus.FAILED
    assert bench.checkpoints(job) == []


def test_a_result_without_a_checkpoint_is_no_success(bench: Bench) -> None:
    job = bench.add_job()

    bench.run(Started(total_steps=1), stepped(1), Finished(step=1, trained_tokens=1))

    done = bench.job(job)
    assert done.status is JobStatus.FAILED
    assert done.error is not None
    assert "without a checkpoint" in done.error["message"]


def test_a_checkpoint_of_a_step_that_was_not_reported_is_refused(bench: Bench) -> None:
    job = bench.add_job()

    bench.run(Started(total_steps=2), stepped(1), checkpointed(2))

    assert bench.job(job).status is JobStatus.FAILED
    assert bench.checkpoints(job) == []


def test_a_base_model_that_is_gone_fails_the_job_and_says_how_to_mend_it(bench: Bench) -> None:
    job = bench.add_job(base_model="absent")

    bench.run(*success())

    assert bench.launcher.directories == []
    assert bench.job(job).error == {
        "code": "model_not_available",
        "message": "The base model absent is no longer installed. Install it with 'tunery "
        "models install absent' and try again.",
        "param": None,
        "errors": [],
    }


def test_data_that_is_gone_fails_the_job(bench: Bench) -> None:
    job = add_job(bench.database, training_file_id="file-gone")

    bench.run(*success())

    done = bench.job(job)
    assert done.status is JobStatus.FAILED
    assert done.error is not None
    assert "No such file: file-gone" in done.error["message"]


def test_steps_that_are_due_or_were_evaluated_become_events(bench: Bench) -> None:
    job = bench.add_job()
    rows = [build_metrics(step) for step in range(1, 13)]
    rows[4] = build_metrics(5, valid_loss=2.0, valid_mean_token_accuracy=0.5)

    bench.run(Started(total_steps=12), *(Stepped(metrics=row) for row in rows))

    told = [message for message in bench.messages(job) if message.startswith("Step ")]
    assert told == [
        "Step 12/12: training loss=0.25",
        "Step 10/12: training loss=0.30",
        "Step 5/12: training loss=0.60, full validation loss=2.00",
    ]
    assert bench.steps(job) == list(range(1, 13))


def test_progress_is_shown_with_speed_and_end(bench: Bench) -> None:
    job = bench.add_job()
    seen: list[Job] = []

    def look(_directory: Path) -> None:
        seen.append(bench.job(job))

    bench.run(Started(total_steps=4), stepped(1), stepped(2), checkpointed(2), look)

    assert (seen[0].total_steps, seen[0].trained_steps) == (4, 2)
    assert seen[0].tokens_per_second == 200.0
    assert seen[0].estimated_finish_at is not None
    assert seen[0].estimated_finish_at >= NOW
    assert bench.job(job).estimated_finish_at is None


def test_a_worker_outlives_a_database_that_is_busy(bench: Bench, settings: Settings) -> None:
    impatient = Database(settings.resolved_database_url, busy_timeout_s=0)
    none_installed = Catalogue([], settings.data_dir / "models")
    worker = bench.build_worker("worker-2", database=impatient, catalogue=none_installed)
    is_refused = threading.Event()
    event.listen(impatient.engine, "handle_error", lambda _: is_refused.set())
    running = threading.Thread(target=worker.run)

    with bench.database.writing() as session:
        lock_out_writers(session)
        running.start()
        assert is_refused.wait(30)
    job = bench.add_job()
    wait_until(lambda: bench.job(job).status is JobStatus.FAILED, within_s=30)
    worker.stop()
    running.join(30)

    impatient.dispose()
    assert not running.is_alive()


class BusyOnce(Database):
    """Refuses the second read. The first one looks for a queued job, the second is an attempt's."""

    reads = 2

    @contextmanager
    def reading(self) -> Generator[Session]:
        self.reads += 1
        if self.reads == 2:
            raise DatabaseBusyError("The database is busy.")
        with super().reading() as session:
            yield session


def test_a_busy_database_does_not_fail_the_job_that_is_being_prepared(bench: Bench) -> None:
    busy = BusyOnce(bench.settings.resolved_database_url)
    bench.replace_worker(database=busy, cancel_poll_interval_s=60.0)

    bench.run()  # an idle turn, in which the janitor reads, too
    job = bench.add_job()
    busy.reads = 0
    bench.run(*success())

    busy.dispose()
    assert bench.job(job).status is JobStatus.SUCCEEDED


def test_a_worker_shows_that_it_lives_and_that_it_has_ended(bench: Bench) -> None:
    bench.add_job()
    seen: list[WorkerStatus] = []

    def look(_directory: Path) -> None:
        seen.extend(list_workers(bench.database))
        bench.worker.stop()

    bench.launcher.acts = [look]
    bench.worker.run()

    assert [(one.identity.worker_id, one.state) for one in seen] == [
        ("worker-1", WorkerState.RUNNING)
    ]
    assert list_workers(bench.database) == []


@pytest.mark.only_sqlite
def test_an_idle_worker_that_asks_for_work_writes_nothing(bench: Bench) -> None:
    """However short the poll interval: only its heartbeat is written, every ten seconds."""
    bench.worker.run_once()
    before = bench.database.version()

    for _ in range(20):
        bench.worker.run_once()

    assert before is not None
    assert bench.database.version() == before


def test_a_step_is_what_the_log_says(bench: Bench) -> None:
    job = bench.add_job()
    row = build_metrics(1, valid_loss=2.5, valid_mean_token_accuracy=0.5)

    bench.run(Started(total_steps=1), Stepped(metrics=row))

    with bench.database.reading() as session:
        log = JobRepository(session, DEFAULT_PROJECT_ID).list_steps(job.id)
    assert log == [row]
