"""README.md and docs/use-your-model.md, run as they stand: with curl, with the client, with peft.

They share a service, which so loads the base model and its libraries once.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.acceptance.documents import ROOT, block_of
from tests.acceptance.processes import InstalledService
from tests.models import link_embedded_model
from tests.programs import require_programs
from tests.wheel import install_wheel


def block(name: str) -> str:
    return block_of("README.md", f"walk-through: {name}")


def block_for_models(name: str) -> str:
    return block_of("docs/use-your-model.md", f"use: {name}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user's own, with packages that must not be taken for the service's."""
    directory = tmp_path_factory.mktemp("readme")
    for name in ("app", "worker"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text("raise SystemExit('not this one')")
    link_embedded_model(directory / "data")
    subprocess.run([install_wheel() / "tunery", "examples"], cwd=directory, check=True)
    shorten(directory / "examples" / "lighthouse-train.jsonl")
    return directory


def shorten(dataset: Path) -> None:
    """Keep four rows of the dataset, of which the recipe `auto` makes ten steps."""
    lines = dataset.read_text("utf-8").splitlines(keepends=True)
    dataset.write_text("".join(lines[:4]), "utf-8")


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[InstalledService]:
    with InstalledService(place / "data", has_sampler=True) as service:
        yield service


@pytest.fixture(scope="module")
def curl_and_jq() -> None:
    require_programs("curl", "jq")


@pytest.fixture(scope="module")
def curl_output(curl_and_jq: None, place: Path, service: InstalledService) -> str:
    return run_bash(block("curl"), place, TUNERY_URL=service.base_url)


@pytest.fixture(scope="module")
def client_output(place: Path, service: InstalledService) -> str:
    return run_python(block("python").replace("http://127.0.0.1:8000/v1", service.base_url), place)


def run_bash(script: str, place: Path, **environment: str) -> str:
    """What a script prints in which `tunery` is the installed one."""
    path = f"{install_wheel()}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=place,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(program: str, place: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_walk_through_ends_with_the_adapter(curl_output: str, place: Path) -> None:
    assert "The job has successfully completed" in curl_output
    assert "adapter_model.safetensors" in curl_output
    assert curl_output.count("\n10,") == 1, "the loss log has every step"
    assert (place / "adapter.zip").stat().st_size > 1_000_000


def test_the_tuned_model_answers_as_the_readme_says(
    curl_output: str, place: Path, service: InstalledService
) -> None:
    with service.client() as client:
        job = client.fine_tuning.jobs.list().data[-1]
    addresses = {"TUNERY_URL": service.base_url, "TUNERY_BASE_URL": service.base_url}

    answers = run_bash(block("chat"), place, **addresses, JOB=job.id).splitlines()

    assert job.fine_tuned_model
    assert len([*filter(str.strip, answers)]) > 1
    assert "null" not in answers


def test_the_client_walk_through_ends_with_the_adapter(client_output: str, place: Path) -> None:
    assert client_output.startswith("succeeded ft:smollm2-135m-instruct:tunery:")
    assert (place / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("client_output")
def test_peft_loads_the_adapter_as_the_readme_says(place: Path) -> None:
    shown = run_python(block("peft") + "\nprint(type(tuned).__name__)", place)

    assert shown.strip() == "PeftModelForCausalLM"


@pytest.fixture(scope="module")
def tuned_place(tmp_path_factory: pytest.TempPathFactory, service: InstalledService) -> Path:
    """A directory with the data directory of a service, and an adapter that this service made."""
    directory = tmp_path_factory.mktemp("use")
    (directory / "data").symlink_to(service.data_dir)
    with service.client() as client:
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


def test_peft_answers_as_the_examples_taught(tuned_place: Path) -> None:
    assert run_python(block_for_models("peft"), tuned_place).startswith("Ahoy!")


def test_a_merged_model_says_what_base_and_adapter_say(tuned_place: Path) -> None:
    run_python(block_for_models("merge"), tuned_place)

    tokenizer = AutoTokenizer.from_pretrained(tuned_place / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tuned_place / "merged")
    base = AutoModelForCausalLM.from_pretrained(
        tuned_place / "data/models/smollm2-135m-instruct", dtype=torch.float32
    )
    tokens = tokenizer("Who keeps the light on Hollow Skerry?", return_tensors="pt")
    with torch.no_grad():
        untuned = base(**tokens).logits
        tuned = PeftModel.from_pretrained(base, tuned_place / "adapter").eval()(**tokens).logits
        plain = merged(**tokens).logits
    assert torch.allclose(plain, tuned, atol=1e-3)
    assert not torch.allclose(plain, untuned, atol=1)


def test_a_job_is_run_again_and_the_service_examined_and_backed_up(
    place: Path, service: InstalledService, curl_output: str
) -> None:
    """Last, so that no other test waits for the second run, which ends with the service."""
    with service.client() as client:
        job = client.fine_tuning.jobs.list().data[-1].id

    printed = run_bash(block("durability"), place, TUNERY_URL=service.base_url, JOB=job)

    assert f'"rerun_of":"{job}"' in printed
    assert (place / "backups/monday/backup.json").is_file()
