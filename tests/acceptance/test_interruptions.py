"""What stops a job half-way: its user, a signal, the end of its worker."""

import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.processes import JOB_S, InstalledService
from tests.builders import build_chat_file
from tests.waiting import wait_until

CANCEL_S = 5.0
"""The promise: so long after the request at most, the child has ended."""

STOP_S = 20.0
"""Longest time a worker that is told to stop may take."""

FOREVER = {"n_epochs": 50, "batch_size": 1, "checkpoint_steps": 2}
"""Thousands of steps: a job that is still running whenever a test looks."""


@pytest.fixture(scope="module")
def client(service: InstalledService) -> Iterator[openai.OpenAI]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def training_file(client: openai.OpenAI) -> str:
    return client.files.create(file=build_chat_file(200), purpose="fine-tune").id


def create_job(client: openai.OpenAI, training_file: str, **knobs: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file, hyperparameters=knobs
    )


def extra(job: FineTuningJob) -> dict[str, Any]:
    """The fields that are ours."""
    return job.model_extra or {}


def wait_for_checkpoint(client: openai.OpenAI, job_id: str) -> None:
    wait_until(lambda: client.fine_tuning.jobs.checkpoints.list(job_id).data, within_s=JOB_S)


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id)]


def steps(client: openai.OpenAI, job_id: str) -> list[int]:
    log: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics?limit=10000", cast_to=object)
    return [row["step"] for row in log["data"]]


@dataclass(frozen=True)
class Cancellation:
    """Two jobs as they were before they were cancelled, in the answer to that, and in the end."""

    waiting: FineTuningJob
    waiting_answer: FineTuningJob
    running: FineTuningJob
    running_answer: FineTuningJob
    ended: FineTuningJob
    """The one that had been running."""
    took_s: float
    """Seconds from that request to the end of its child."""


@pytest.fixture(scope="module")
def cancellation(
    client: openai.OpenAI, training_file: str, service: InstalledService
) -> Cancellation:
    """A job is cancelled while it trains, and, before that, the one that waits behind it."""
    jobs = client.fine_tuning.jobs
    running = create_job(client, training_file, **FOREVER)
    waiting = create_job(client, training_file)
    wait_for_checkpoint(client, running.id)
    wait_until(lambda: jobs.retrieve(waiting.id).status == "queued", within_s=JOB_S)
    before = [jobs.retrieve(waiting.id), jobs.retrieve(running.id)]
    waiting_answer = jobs.cancel(waiting.id)
    assert service.find_child(running.id) is not None
    asked_s = time.monotonic()
    running_answer = jobs.cancel(running.id)
    wait_until(lambda: service.find_child(running.id) is None, within_s=2 * CANCEL_S)
    took_s = time.monotonic() - asked_s
    ended = service.wait_for_end(client, running.id)
    return Cancellation(before[0], waiting_answer, before[1], running_answer, ended, took_s)


def test_a_waiting_job_is_cancelled_at_once(cancellation: Cancellation) -> None:
    before, after = cancellation.waiting, cancellation.waiting_answer

    assert (before.status, extra(before)["queue_position"]) == ("queued", 1)
    assert (after.status, extra(after)["queue_position"]) == ("cancelled", None)
    assert after.finished_at is not None


def test_a_running_job_shows_when_it_will_end(cancellation: Cancellation) -> None:
    assert cancellation.running.estimated_finish is not None
    assert cancellation.running.estimated_finish >= cancellation.running.created_at
    assert cancellation.running.trained_tokens is None
    assert 0 < extra(cancellation.running)["progress"] < 1


def test_a_running_job_is_cancelled_within_five_seconds(cancellation: Cancellation) -> None:
    answer, ended = cancellation.running_answer, cancellation.ended

    assert cancellation.took_s < CANCEL_S
    assert answer.status == "running"
    assert extra(answer)["cancel_requested_at"] is not None
    assert (ended.status, ended.error, ended.fine_tuned_model) == ("cancelled", None, None)
    assert ended.estimated_finish is None


def test_a_cancelled_job_keeps_its_log_and_its_checkpoints(
    client: openai.OpenAI, service: InstalledService, cancellation: Cancellation
) -> None:
    job = cancellation.ended

    found = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=100))
    log = steps(client, job.id)
    assert found[-1].step_number == 2
    assert log == list(range(1, len(log) + 1))
    assert len(log) >= found[0].step_number
    assert messages(client, job.id)[0] == "Fine-tuning job cancelled"
    url = f"{service.base_url}/fine_tuning/jobs/{job.id}/adapter"
    assert httpx.get(url).json()["error"]["code"] == "adapter_not_ready"
    assert httpx.get(url, params={"checkpoint": 2}).status_code == 200


@pytest.fixture(scope="module")
def poison(client: openai.OpenAI, training_file: str, service: InstalledService) -> FineTuningJob:
    """A job whose child is killed by the machine whenever it starts."""
    job = create_job(client, training_file, **FOREVER)
    jobs = client.fine_tuning.jobs
    wait_until(lambda: jobs.retrieve(job.id).status == "running", within_s=JOB_S)
    killed: set[int] = set()
    while len(killed) < 2:
        killed.add(kill_child(service, job.id, spared=killed))
    return service.wait_for_end(client, job.id)


def kill_child(service: InstalledService, job_id: str, spared: Collection[int] = ()) -> int:
    def find() -> int | None:
        child = service.find_child(job_id)
        return None if child in spared else child

    child = wait_until(find, within_s=JOB_S)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    return child


def test_a_job_whose_child_dies_again_and_again_fails_with_the_reason(
    client: openai.OpenAI, poison: FineTuningJob
) -> None:
    assert (poison.status, poison.fine_tuned_model) == ("failed", None)
    assert poison.error is not None
    assert poison.error.code == "training_crashed"
    assert poison.error.message.startswith(
        "The process was killed, most likely because the machine ran out of memory, 2 "
        "times without progress. Lower batch_size"
    )
    assert messages(client, poison.id)[0] == f"The job failed: {poison.error.message}"
    assert extra(poison)["attempt"] == 2


@dataclass(frozen=True)
class Recovery:
    """What became of a job to which everything happened that ends an attempt."""

    exit_code: int
    """Of the first worker, which was told to stop."""
    orphan: int | None
    """Process id of a child that it has left behind."""
    between: FineTuningJob
    """The job while there was no worker."""
    paused: FineTuningJob
    ended: FineTuningJob


STEPS = 1200
LONG_ENOUGH = {"max_steps": STEPS, "n_epochs": 50, "batch_size": 1, "checkpoint_steps": 100}


@pytest.fixture(scope="module")
def undisturbed(
    client: openai.OpenAI, training_file: str, service: InstalledService
) -> FineTuningJob:
    return service.wait_for_end(client, create_job(client, training_file, **LONG_ENOUGH).id)


@pytest.fixture(scope="module")
def recovery(
    client: openai.OpenAI, undisturbed: FineTuningJob, service: InstalledService
) -> Recovery:
    """The undisturbed job once more, interrupted in four ways, each after it got further."""
    job: Any = client.post(f"/fine_tuning/jobs/{undisturbed.id}/rerun", cast_to=object)
    job_id: str = job["id"]
    worker = service.processes["worker-1"]

    wait_for_more(client, job_id)
    exit_code = worker.stop(within_s=STOP_S)
    orphan = service.find_child(job_id)
    between = client.fine_tuning.jobs.retrieve(job_id)
    service.start("worker-1")

    wait_for_more(client, job_id)
    kill_child(service, job_id)

    wait_for_more(client, job_id, checkpoints=2)
    worker.stop(signal.SIGKILL)
    service.start("worker-1")

    wait_for_more(client, job_id)
    with service.client(strict=False) as lenient:  # the client knows no status `paused`
        jobs = lenient.fine_tuning.jobs
        jobs.pause(job_id)

        def look() -> FineTuningJob | None:
            found = jobs.retrieve(job_id)
            return found if str(found.status) == "paused" else None

        paused = wait_until(look, within_s=JOB_S)
    assert paused is not None
    client.fine_tuning.jobs.resume(job_id)
    return Recovery(exit_code, orphan, between, paused, service.wait_for_end(client, job_id))


def wait_for_more(client: openai.OpenAI, job_id: str, checkpoints: int = 1) -> None:
    def count() -> int:
        return len(client.fine_tuning.jobs.checkpoints.list(job_id, limit=100).data)

    wanted = count() + checkpoints
    wait_until(lambda: count() >= wanted, within_s=JOB_S)


def test_a_stopped_worker_ends_well_and_puts_its_job_back(recovery: Recovery) -> None:
    assert (recovery.exit_code, recovery.orphan) == (0, None)
    assert recovery.between.status == "queued"
    assert extra(recovery.between)["queue_position"] == 1


def test_a_paused_job_shows_how_far_it_is(recovery: Recovery) -> None:
    assert 0 < extra(recovery.paused)["progress"] < 1
    assert extra(recovery.paused)["queue_position"] is None


def test_an_interrupted_job_ends_as_if_nothing_had_happened(
    client: openai.OpenAI, undisturbed: FineTuningJob, recovery: Recovery
) -> None:
    before, after = undisturbed, recovery.ended

    assert (after.status, extra(after)["attempt"]) == ("succeeded", 5)
    assert extra(after)["rerun_of"] == before.id
    assert adapter_of(client, after.id) == adapter_of(client, before.id)
    assert log_of(client, after.id) == log_of(client, before.id)
    assert len(log_of(client, after.id)) == STEPS
    told = messages(client, after.id)
    assert told.count("Fine-tuning job started") == 1
    for why in (
        "The worker was stopped; the job is queued again and will resume after step",
        "The process was killed, most likely because the machine ran out of memory; ",
        "Its worker ",
        "Fine-tuning job paused after step ",
    ):
        assert len([message for message in told if message.startswith(why)]) == 1, why
    assert len([one for one in told if one.startswith("Fine-tuning job resumed after")]) == 4


def test_a_job_that_goes_on_from_the_saved_state_of_a_failed_one_ends_as_if_nothing_had_happened(
    client: openai.OpenAI, undisturbed: FineTuningJob, service: InstalledService
) -> None:
    jobs = client.fine_tuning.jobs
    failing = client.post(f"/fine_tuning/jobs/{undisturbed.id}/rerun", cast_to=FineTuningJob)
    wait_for_checkpoint(client, failing.id)
    killed: set[int] = set()

    def kill_until_failed() -> FineTuningJob | None:
        child = service.find_child(failing.id)
        if child is not None and child not in killed:
            os.kill(child, signal.SIGKILL)
            killed.add(child)
        job = jobs.retrieve(failing.id)
        return job if job.status == "failed" else None

    failed = wait_until(kill_until_failed, within_s=JOB_S)
    assert failed is not None
    assert failed.error is not None
    assert '.../rerun with {"from": "saved_state"} continues after step' in failed.error.message

    again = client.post(
        f"/fine_tuning/jobs/{failed.id}/rerun",
        body={"from": "saved_state"},
        cast_to=FineTuningJob,
    )
    ended = service.wait_for_end(client, again.id)

    assert (ended.status, ended.trained_tokens) == ("succeeded", undisturbed.trained_tokens)
    step = extra(ended)["resumed_from_step"]
    assert step >= LONG_ENOUGH["checkpoint_steps"]
    assert f"Fine-tuning job resumed after step {step}" in messages(client, ended.id)
    assert extra(ended)["total_steps"] == STEPS
    assert adapter_of(client, ended.id) == adapter_of(client, undisturbed.id)
    assert log_of(client, ended.id) == log_of(client, undisturbed.id)


def adapter_of(client: openai.OpenAI, job_id: str) -> bytes:
    (newest, *_) = client.fine_tuning.jobs.checkpoints.list(job_id).data
    files = [client.files.retrieve(one) for one in (newest.model_extra or {})["result_files"]]
    (weights,) = [file.id for file in files if file.filename == "adapter_model.safetensors"]
    return client.files.content(weights).read()


def log_of(client: openai.OpenAI, job_id: str) -> list[dict[str, Any]]:
    """Less the time it took."""
    log: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics?limit=10000", cast_to=object)
    return [{key: row[key] for key in row if key != "elapsed_s"} for row in log["data"]]


def test_a_deleted_model_frees_its_adapter_and_leaves_its_job(
    client: openai.OpenAI, service: InstalledService, recovery: Recovery
) -> None:
    job = recovery.ended
    name = job.fine_tuned_model
    assert name is not None
    (last, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    blobs = service.data_dir / "blobs" / "jobs" / job.id / "attempt-5"
    assert (blobs / f"step-{STEPS}").is_dir()

    deleted = client.models.delete(name)

    assert deleted.model_dump() == {"id": name, "object": "model", "deleted": True}
    assert not (blobs / f"step-{STEPS}").exists()
    assert (blobs / f"step-{STEPS - 100}").is_dir()
    assert name not in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve((last.model_extra or {})["result_files"][0])
    answer = httpx.get(f"{service.base_url}/fine_tuning/jobs/{job.id}/adapter")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_deleted")
    assert client.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    assert client.files.content(job.result_files[0]).text.startswith("step,")
