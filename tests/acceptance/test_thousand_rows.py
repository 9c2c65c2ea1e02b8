"""A job of a thousand rows, over HTTP alone, and its adapter in the hands of plain `peft`."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch
from openai.types.fine_tuning import FineTuningJob
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.acceptance.processes import InstalledService
from tests.builders import build_chat_file

EXAMPLES = 1000
BATCH_SIZE = 8
STEPS = EXAMPLES // BATCH_SIZE
VALIDATION = build_chat_file(20, first=EXAMPLES)


class Result(NamedTuple):
    job: FineTuningJob
    log: list[dict[str, str]]
    """The rows of the result file."""
    adapter: Path
    """The downloaded archive, unpacked."""


@pytest.fixture(scope="module")
def result(service: InstalledService, tmp_path_factory: pytest.TempPathFactory) -> Result:
    with service.client() as client:
        training = client.files.create(file=build_chat_file(EXAMPLES), purpose="fine-tune")
        validation = client.files.create(file=VALIDATION, purpose="fine-tune")
        knobs: dict[str, Any] = {
            "n_epochs": 1,
            "batch_size": BATCH_SIZE,
            "learning_rate": 1e-3,
            "lora_target_modules": "all-linear",
            "n_evals": 4,
        }
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=training.id,
            validation_file=validation.id,
            hyperparameters=knobs,
            seed=1,
        )
        job = service.wait_for_end(client, job.id)
        url = f"{service.base_url}/fine_tuning/jobs/{job.id}"
        log = httpx.get(f"{url}/metrics", headers={"accept": "text/csv"}).text
    archive = httpx.get(f"{url}/adapter").content
    adapter = tmp_path_factory.mktemp("adapter")
    zipfile.ZipFile(io.BytesIO(archive)).extractall(adapter)
    return Result(job, list(csv.DictReader(io.StringIO(log))), adapter)


def test_the_loss_log_has_every_step(result: Result) -> None:
    assert [int(row["step"]) for row in result.log] == list(range(STEPS + 1))


def test_the_validation_loss_falls(result: Result) -> None:
    measured = [float(row["valid_loss"]) for row in result.log if row["valid_loss"]]

    assert len(measured) == 5  # the first is of the base model
    assert measured == sorted(measured, reverse=True)
    assert measured[-1] < 0.8 * measured[0], measured


def test_plain_peft_reproduces_the_validation_loss(result: Result, tiny_data_dir: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(
        tiny_data_dir / "models" / "tiny", dtype=torch.float32
    )
    tuned = PeftModel.from_pretrained(base, result.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.adapter)

    nll, tokens = 0.0, 0
    for line in VALIDATION.splitlines():
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(
            messages[:1], tokenize=False, add_generation_prompt=True
        )
        answer = messages[1]["content"] + tokenizer.eos_token
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        input_ids = torch.tensor([prompt_ids + answer_ids])
        labels = torch.tensor([[-100] * len(prompt_ids) + answer_ids])
        with torch.no_grad():
            mean = tuned(input_ids=input_ids, labels=labels).loss.item()
        nll, tokens = nll + mean * len(answer_ids), tokens + len(answer_ids)

    assert nll / tokens == pytest.approx((result.job.model_extra or {})["valid_loss"], abs=1e-3)
