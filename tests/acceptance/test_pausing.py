"""A job that is paused while it trains, and goes on from where it was."""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.processes import JOB_S, InstalledService
from tests.builders import build_chat_file
from tests.waiting import wait_until

PAUSE_S = 30
"""So long after the request at most, the state is saved and the child has ended."""

KNOBS = {"n_epochs": 2, "batch_size": 1, "checkpoint_steps": 5}
STEPS = 400


def extra(job: FineTuningJob) -> dict[str, Any]:
    """The fields that are ours."""
    return job.model_extra or {}


@pytest.fixture(scope="module")
def client(service: InstalledService) -> Iterator[openai.OpenAI]:
    """Lenient, as the client does not know the status `paused`."""
    with service.client(strict=False) as client:
        yield client


@pytest.fixture(scope="module")
def training_file(client: openai.OpenAI) -> str:
    return client.files.create(file=build_chat_file(200), purpose="fine-tune").id


def test_a_running_job_is_paused_and_goes_on_after_the_step_it_had_reached(
    client: openai.OpenAI, service: InstalledService, training_file: str
) -> None:
    jobs = client.fine_tuning.jobs
    knobs: Any = KNOBS
    job = jobs.create(model="tiny", training_file=training_file, hyperparameters=knobs)
    wait_until(lambda: jobs.checkpoints.list(job.id).data, within_s=JOB_S)

    asked = jobs.pause(job.id)
    paused = wait_until(
        lambda: one if (one := jobs.retrieve(job.id)).status == "paused" else None,
        within_s=PAUSE_S,
    )
    assert service.find_child(job.id) is None
    other = jobs.create(model="tiny", training_file=training_file, hyperparameters=knobs)
    wait_until(lambda: jobs.retrieve(other.id).status == "running", within_s=JOB_S)
    jobs.cancel(other.id)
    resumed = jobs.resume(job.id)
    ended = service.wait_for_end(client, job.id)

    assert (asked.status, extra(asked)["pause_requested_at"] is None) == ("running", False)
    assert 0 < extra(paused)["trained_steps"] < STEPS
    assert extra(paused)["pause_requested_at"] is None
    assert resumed.status == "queued"
    assert (ended.status, extra(ended)["attempt"]) == ("succeeded", 2)
    log: Any = client.get(f"/fine_tuning/jobs/{job.id}/metrics", cast_to=object)
    assert [row["step"] for row in log["data"]] == list(range(1, STEPS + 1))
    told = "\n".join(event.message for event in jobs.list_events(job.id))
    before, after = (
        re.findall(rf"{what} after step (\d+)", told) for what in ("paused", "resumed")
    )
    assert before == after
    assert [0 < int(step) <= extra(paused)["trained_steps"] for step in before] == [True]


def test_a_job_that_is_not_to_start_is_taken_by_no_worker_until_it_is_resumed(
    client: openai.OpenAI, service: InstalledService, training_file: str
) -> None:
    jobs = client.fine_tuning.jobs
    knobs: Any = KNOBS | {"max_steps": 2}
    body = {"model": "tiny", "training_file": training_file, "hyperparameters": knobs}
    held = jobs.create(**body, extra_body={"auto_start": False})

    other = service.wait_for_end(client, jobs.create(**body).id)
    still_held = wait_until(  # its data may be checked beside the training of the other job
        lambda: one if (one := jobs.retrieve(held.id)).status == "paused" else None,
        within_s=JOB_S,
    )
    jobs.resume(held.id)
    ended = service.wait_for_end(client, held.id)

    assert (held.status, still_held.status) == ("validating_files", "paused")
    assert extra(still_held)["attempt"] == 0
    assert (other.status, ended.status) == ("succeeded", "succeeded")
