"""The model that answers is the one that was trained, however its adapter came about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.asking.reference import Reference
from tests.asking.service import (
    JOB_S,
    AskedService,
    checksum_of,
    create_job,
    download_adapter,
    name_of,
    rows_of,
    upload,
)
from tests.waiting import wait_until

QUESTIONS = ("Who are you?", "Say more.")
TOKENS = 24
SLOWLY = {"max_steps": 600, "batch_size": 1, "checkpoint_steps": 20, "learning_rate": 0.01}
"""A job that still trains long after its first checkpoint, when it is paused."""


@pytest.fixture(scope="module")
def client(service: AskedService) -> Iterator[openai.OpenAI]:
    with service.client(_strict_response_validation=False) as client:  # it knows no `paused`
        yield client


@pytest.fixture(scope="module")
def training_file(client: openai.OpenAI) -> str:
    return upload(client, rows_of("red"))


@pytest.fixture(scope="module")
def resumed_job(client: openai.OpenAI, service: AskedService, training_file: str) -> str:
    """A job that was paused after its first checkpoint, and resumed."""
    jobs = client.fine_tuning.jobs
    job = create_job(client, training_file, **SLOWLY)
    wait_until(lambda: jobs.checkpoints.list(job.id).data, within_s=JOB_S)
    jobs.pause(job.id)
    wait_until(lambda: str(jobs.retrieve(job.id).status) == "paused", within_s=JOB_S)
    jobs.resume(job.id)
    ended = service.wait_for_end(client, job.id)
    assert (ended.model_extra or {})["attempt"] == 2
    return job.id


@pytest.fixture(scope="module")
def continuing_job(client: openai.OpenAI, service: AskedService, resumed_job: str) -> str:
    """A job that continues the adapter of another one."""
    parent = name_of(client.fine_tuning.jobs.retrieve(resumed_job))
    file_id = upload(client, rows_of("blue"))
    return service.wait_for_end(
        client, create_job(client, file_id, model=parent, max_steps=20, lora_rank="auto").id
    ).id


def check_answers(client: openai.OpenAI, model: str, base: Path, adapter: Path) -> None:
    """Compare the answers of a model with those of an adapter in files, elsewhere."""
    reference = Reference(base, adapter)
    for question in QUESTIONS:
        messages: list[Any] = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=TOKENS
        )
        assert answer.choices[0].message.content == reference.chat(messages, max_tokens=TOKENS)
        assert answer.system_fingerprint is not None
        assert answer.system_fingerprint.startswith(checksum_of(adapter))


@pytest.mark.parametrize("which", ["resumed_job", "continuing_job"])
def test_the_model_of_a_job_is_its_adapter(
    client: openai.OpenAI,
    service: AskedService,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    *,
    which: str,
) -> None:
    job_id: str = request.getfixturevalue(which)
    adapter = download_adapter(client, job_id, tmp_path)

    model = name_of(client.fine_tuning.jobs.retrieve(job_id))
    check_answers(client, model, service.data_dir / "models" / "tiny", adapter)


def test_an_imported_model_is_the_adapter_that_was_uploaded(
    client: openai.OpenAI, service: AskedService, tmp_path: Path, continuing_job: str
) -> None:
    adapter = download_adapter(client, continuing_job, tmp_path)
    archive = httpx.get(f"{service.base_url}/fine_tuning/jobs/{continuing_job}/adapter").content

    imported = httpx.post(
        f"{service.base_url}/models",
        files={"file": ("adapter.zip", archive)},
        data={"base_model": "tiny"},
        timeout=60,
    ).raise_for_status()

    model = imported.json()["id"]
    assert model != name_of(client.fine_tuning.jobs.retrieve(continuing_job))
    check_answers(client, model, service.data_dir / "models" / "tiny", adapter)


def test_models_with_different_adapters_have_different_fingerprints(
    client: openai.OpenAI, resumed_job: str, continuing_job: str
) -> None:
    jobs = client.fine_tuning.jobs
    names = [name_of(jobs.retrieve(job)) for job in (resumed_job, continuing_job)]
    names += ["tiny", f"{names[0]}:ckpt-step-20"]

    fingerprints = {
        client.completions.create(model=name, prompt="a", max_tokens=1).system_fingerprint
        for name in names
    }

    assert len(fingerprints) == len(names)
