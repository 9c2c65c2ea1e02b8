"""`docs/use-your-model.md`: its blocks of Python, run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.acceptance.documents import ROOT, block_of
from tests.acceptance.processes import InstalledService
from tests.models import link_embedded_model

DOCUMENT = "docs/use-your-model.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a data directory of a service, and an adapter that this service made."""
    directory = tmp_path_factory.mktemp("use")
    link_embedded_model(directory / "data")
    with InstalledService(directory / "data") as service, service.client() as client:
        training_file = client.files.create(
            file=ROOT / "examples/lighthouse-train.jsonl", purpose="fine-tune"
        )
        job = client.fine_tuning.jobs.create(
            model="smollm2-135m-instruct",
            training_file=training_file.id,
            hyperparameters={
                "max_steps": 8,
                "learning_rate": 1.7e-3,
                "lora_target_modules": "all-linear",
            },
        )
        assert service.wait_for_end(client, job.id).status == "succeeded"
        (directory / "adapter").mkdir()
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
        result = next(checkpoint for checkpoint in checkpoints if checkpoint.is_result)
        for file_id in result.result_files:
            name = client.files.retrieve(file_id).filename
            client.files.content(file_id).write_to_file(directory / "adapter" / name)
    return directory


def run_block(name: str, place: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block_of(DOCUMENT, name)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_peft_answers_as_the_examples_taught(place: Path) -> None:
    assert run_block("use: peft", place).startswith("Ahoy!")


def test_a_merged_model_says_what_base_and_adapter_say(place: Path) -> None:
    run_block("use: merge", place)

    tokenizer = AutoTokenizer.from_pretrained(place / "merged")
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    base = AutoModelForCausalLM.from_pretrained(
        place / "data/models/smollm2-135m-instruct", dtype=torch.float32
    )
    tokens = tokenizer("Who keeps the light on Hollow Skerry?", return_tensors="pt")
    with torch.no_grad():
        untuned = base(**tokens).logits
        tuned = PeftModel.from_pretrained(base, place / "adapter").eval()(**tokens).logits
        plain = merged(**tokens).logits
    assert torch.allclose(plain, tuned, atol=1e-3)
    assert not torch.allclose(plain, untuned, atol=1)
