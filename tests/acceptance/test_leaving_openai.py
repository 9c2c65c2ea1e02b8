"""`docs/leaving-openai.md`, run as it stands. Our own service stands in for OpenAI."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.documents import ROOT, block_of
from tests.acceptance.processes import InstalledService
from tests.models import link_embedded_model

DOCUMENT = "docs/leaving-openai.md"
LIGHTHOUSE = ROOT / "examples/lighthouse-train.jsonl"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("leaving")
    lines = LIGHTHOUSE.read_text("utf-8").splitlines(keepends=True)[:12]
    (directory / "train.jsonl").write_text("".join(lines), "utf-8")
    link_embedded_model(directory / "data")
    return directory


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[InstalledService]:
    with InstalledService(place / "data") as service:
        yield service


@pytest.fixture(scope="module")
def script_output(place: Path, service: InstalledService) -> str:
    after = block_of(DOCUMENT, "leaving: after")
    program = after.replace("http://127.0.0.1:8000/v1", service.base_url)
    assert program != after
    return run_python(program + block_of(DOCUMENT, "leaving: rest"), place)


def run_python(program: str, place: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=place,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_two_lines_of_the_script_change() -> None:
    before = block_of(DOCUMENT, "leaving: before").splitlines()
    after = block_of(DOCUMENT, "leaving: after").splitlines()

    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["client = OpenAI()", 'MODEL = "gpt-4o-mini-2024-07-18"']


def test_the_script_tunes_a_model_here(script_output: str) -> None:
    assert script_output.startswith("succeeded ft:smollm2-135m-instruct:tunery:support:")
    assert "The job has successfully completed" in script_output


@pytest.mark.usefixtures("script_output")
def test_the_export_saves_jobs_and_files(place: Path, service: InstalledService) -> None:
    program = block_of(DOCUMENT, "leaving: export")
    service_of_openai = {"OPENAI_BASE_URL": service.base_url, "OPENAI_API_KEY": "unused"}

    said = run_python(program, place, **service_of_openai)

    (job,) = json.loads((place / "openai-export/jobs.json").read_text("utf-8"))
    saved = {path.name: path for path in (place / "openai-export/files").iterdir()}
    assert said.strip() == "1 jobs, 2 files"
    assert job["status"] == "succeeded"
    assert {"The job has successfully completed"} <= {each["message"] for each in job["events"]}
    assert job["checkpoints"]
    training = saved[f"{job['training_file']}-train.jsonl"]
    assert training.read_bytes() == (place / "train.jsonl").read_bytes()
    (log,) = [path for name, path in saved.items() if name.startswith(job["result_files"][0])]
    assert log.read_text("utf-8").startswith("step,train_loss,")


@pytest.mark.usefixtures("script_output")
def test_the_export_goes_on_without_a_file_that_is_gone(
    place: Path, service: InstalledService
) -> None:
    with service.client() as client:
        (job,) = client.fine_tuning.jobs.list().data
        client.files.delete(job.training_file)
    shutil.rmtree(place / "openai-export", ignore_errors=True)

    said = run_python(
        block_of(DOCUMENT, "leaving: export"),
        place,
        OPENAI_BASE_URL=service.base_url,
        OPENAI_API_KEY="unused",
    )

    assert said.startswith(f"{job.training_file}: Error code: 404")
    assert said.strip().endswith("1 jobs, 1 files")
