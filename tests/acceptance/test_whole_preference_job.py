"""A supervised job, then preference tuning on its result, with the stock client in strict mode."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.conftest import REPORT_S
from tests.acceptance.processes import InstalledService
from tests.waiting import wait_until

PAIRS, EPOCHS, BATCH_SIZE = 24, 3, 4


def build_pairs() -> bytes:
    """Polite answers that are preferred to rude ones."""
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"What comes after {number}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"It is {number + 1}, please."}],
            "non_preferred_output": [{"role": "assistant", "content": f"Go away, {number} fool!"}],
        }
        for number in range(PAIRS)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture(scope="module")
def client(service: InstalledService) -> Iterator[openai.OpenAI]:
    with service.client(strict=True) as client:
        yield client


@pytest.fixture(scope="module")
def request_body(client: openai.OpenAI, finished_job: FineTuningJob) -> dict[str, Any]:
    file = client.files.create(file=("pairs.jsonl", build_pairs()), purpose="fine-tune")
    hyperparameters = {
        "beta": 0.1,
        "n_epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "learning_rate_multiplier": 250,
        "validation_split": 1 / 6,
    }
    return {
        "model": finished_job.fine_tuned_model,
        "training_file": file.id,
        "method": {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        "seed": 1,
    }


@pytest.fixture(scope="module")
def job(
    service: InstalledService, client: openai.OpenAI, request_body: dict[str, Any]
) -> FineTuningJob:
    created = client.fine_tuning.jobs.create(**request_body)
    return service.wait_for_end(client, created.id)


def test_the_job_succeeds_and_shows_its_method(
    job: FineTuningJob, finished_job: FineTuningJob
) -> None:
    assert job.status == "succeeded", job.error
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.1)
    assert job.model_dump()["parent"]["model"] == finished_job.fine_tuned_model
    assert job.trained_tokens


def test_the_model_learns_what_is_preferred(client: openai.OpenAI, job: FineTuningJob) -> None:
    content = client.files.content(job.result_files[0]).text
    rows = list(csv.DictReader(io.StringIO(content)))

    assert len(rows) == EPOCHS * PAIRS * 5 // 6 // BATCH_SIZE
    assert float(rows[-1]["train_reward_accuracy"]) > 0.9
    assert float(rows[-1]["valid_reward_accuracy"]) > 0.9
    assert float(rows[-1]["train_reward_margin"]) > float(rows[0]["train_reward_margin"])


def test_its_data_is_counted_in_pairs(service: InstalledService, job: FineTuningJob) -> None:
    report = httpx.get(f"{service.base_url}/fine_tuning/jobs/{job.id}/data").json()["report"]

    training = report["training_file"]
    assert (training["lines"], training["examples"]) == (PAIRS, PAIRS)
    assert report["held_out"]["examples"] == PAIRS // 6
    assert 0 < training["learned_tokens"] < training["tokens"]


def test_the_estimate_counts_its_steps(
    client: openai.OpenAI, job: FineTuningJob, request_body: dict[str, Any]
) -> None:
    answer: Any = client.post(
        "/fine_tuning/jobs/estimate", cast_to=object, body=request_body | {"suffix": "x"}
    )

    assert answer["estimate"]["steps"] == job.model_dump()["total_steps"]
    assert answer["hyperparameters"]["beta"] == 0.1


def test_its_report_compares_with_preferred_answers(
    service: InstalledService, job: FineTuningJob
) -> None:
    url = f"{service.base_url}/fine_tuning/jobs/{job.id}/report"
    wait_until(lambda: httpx.get(url).json()["finished_at"], within_s=REPORT_S)

    read = httpx.get(url).json()
    assert read["status"] == "succeeded", read["error"]
    report = read["report"]
    assert (report["source"], report["examples"]) == ("validation_split", PAIRS // 6)
    assert all("please" in answer["reference"] for answer in report["answers"])
    assert report["answers"]
