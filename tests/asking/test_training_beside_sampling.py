"""A job learns the same, bit by bit, whether or not the sampler answers beside it."""

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.asking.service import (
    JOB_S,
    AskedService,
    create_job,
    install_asked_model,
    name_of,
    upload,
)
from tests.tiny import chat_row
from tests.waiting import wait_until

CLIENTS = 3
STEPS = 120
TOKENS = 10
"""Length of an answer at most: so short that many fit beside the job, also on a busy machine."""
ROWS = [chat_row(f"What is {number}?", number * "It is. ") for number in range(1, 25)]
"""Of many lengths, so that a step has several micro-batches."""

ENOUGH = {"shared": 5, "idle": 1}
"""Answers that a test needs to have seen during the job. In `idle`, they are refusals."""


@dataclass(frozen=True)
class Outcome:
    """What a job has learned."""

    adapter: bytes
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class Undisturbed:
    """A job of a service without a sampler."""

    data_dir: Path
    job: FineTuningJob
    outcome: Outcome


class Crowd:
    """Clients that ask the base model and a tuned one all the time."""

    def __init__(self, service: AskedService, models: list[str]) -> None:
        self._service = service
        self._models = models
        self._ended = threading.Event()
        self.answers: Counter[str] = Counter()
        """How many there were of each kind: whole answers, and refusals by their code."""

    @contextmanager
    def asking(self) -> Generator[None]:
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, number: int) -> None:
        messages: list[Any] = [{"role": "user", "content": f"Who are you, {number}?"}]
        model = self._models[number % len(self._models)]
        with self._service.client() as client:
            while not self._ended.is_set():
                try:
                    stream = client.chat.completions.create(
                        model=model, messages=messages, max_tokens=TOKENS, stream=True
                    )
                    self.answers["whole"] += bool(list(stream))
                except openai.RateLimitError as error:
                    self.answers[str(error.code)] += 1
                    self._ended.wait(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    install_asked_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    with AskedService(data_dir, has_sampler=False) as service, service.client() as client:
        job = create_job(client, upload(client, ROWS), max_steps=STEPS, lora_dropout=0.1)
        job = service.wait_for_end(client, job.id)
        return Undisturbed(data_dir, job, read_outcome(client, job.id))


def read_outcome(client: openai.OpenAI, job_id: str) -> Outcome:
    log: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics?limit=10000", cast_to=object)
    (newest, *_) = client.fine_tuning.jobs.checkpoints.list(job_id).data
    files = [client.files.retrieve(one) for one in (newest.model_extra or {})["result_files"]]
    (weights,) = [file.id for file in files if file.filename == "adapter_model.safetensors"]
    return Outcome(
        client.files.content(weights).read(),
        [{key: row[key] for key in row if key != "elapsed_s"} for row in log["data"]],
    )


@pytest.mark.parametrize("mode", ["shared", "idle"])
def test_a_job_beside_which_models_are_asked_learns_the_same(
    undisturbed: Undisturbed, mode: str
) -> None:
    first = undisturbed.job
    kind = {"shared": "whole", "idle": "training_in_progress"}[mode]
    with AskedService(undisturbed.data_dir, sampling=mode) as service, service.client() as client:
        crowd = Crowd(service, ["tiny", name_of(first)])
        with crowd.asking():
            wait_until(lambda: crowd.answers["whole"], within_s=JOB_S)
            job = client.post(f"/fine_tuning/jobs/{first.id}/rerun", cast_to=FineTuningJob)
            wait_until(lambda: steps_of(client, job.id), within_s=JOB_S)
            before = crowd.answers[kind]
            ended = service.wait_for_end(client, job.id)
            seen = crowd.answers[kind] - before
        outcome = read_outcome(client, job.id)

    assert ended.status == "succeeded"
    assert seen >= ENOUGH[mode]
    assert len(outcome.log) == STEPS
    assert outcome == undisturbed.outcome


def steps_of(client: openai.OpenAI, job_id: str) -> int:
    """Steps that a job has trained so far."""
    return (client.fine_tuning.jobs.retrieve(job_id).model_extra or {})["trained_steps"] or 0
