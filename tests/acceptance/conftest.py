"""One service for all of these tests, with a base model small enough to train in seconds."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from benchmarks.support.samples import build_chat_file
from tests.acceptance.client_command import Client
from tests.acceptance.processes import InstalledService
from tests.tiny import install_tiny_model
from tests.waiting import wait_until

REPORT_S = 240
"""Limit for a report, in seconds."""


@pytest.fixture(scope="package")
def tiny_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one installed base model, `tiny`."""
    data_dir = tmp_path_factory.mktemp("service") / "data"
    install_tiny_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    return data_dir


@pytest.fixture(scope="package")
def service(tiny_data_dir: Path) -> Iterator[InstalledService]:
    with InstalledService(tiny_data_dir) as service:
        yield service


@pytest.fixture(params=["lenient", "strict"])
def client(request: pytest.FixtureRequest, service: InstalledService) -> Iterator[openai.OpenAI]:
    """The stock client in both of its modes."""
    with service.client(strict=request.param == "strict") as client:
        yield client


@pytest.fixture(scope="package")
def finished_job(service: InstalledService) -> FineTuningJob:
    """A job of 24 steps with a validation file, its report, and all labels there are; read only."""
    with service.client() as client:
        training = client.files.create(
            file=("train.jsonl", build_chat_file(48)), purpose="fine-tune"
        )
        validation = client.files.create(
            file=("valid.jsonl", build_chat_file(8, first=100)), purpose="fine-tune"
        )
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=training.id,
            validation_file=validation.id,
            suffix="My Suffix",
            seed=42,
            metadata={"team": "red", "run": "1"},
            method={
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {
                        "n_epochs": 2,
                        "batch_size": "auto",
                        "learning_rate_multiplier": 1.8,
                        "checkpoint_steps": 10,  # pyright: ignore[reportArgumentType] - ours
                        "logging_steps": 5,
                        "lora_rank": 8,
                    }
                },
            },
        )
        ended = service.wait_for_end(client, job.id)
    # Its archive changes once more when the report is made.
    report = f"{service.base_url}/fine_tuning/jobs/{job.id}/report"
    wait_until(lambda: httpx.get(report).json()["finished_at"], within_s=REPORT_S)
    return ended


@pytest.fixture
def tunery(service: InstalledService, tmp_path: Path) -> Client:
    """The command as a client of `service`."""
    return Client(tmp_path, service.base_url)
