"""The README's walk-through, run as it stands: with curl, with the stock client, with peft."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.documents import block_of
from tests.acceptance.processes import InstalledService
from tests.models import link_embedded_model
from tests.programs import require_programs
from tests.wheel import install_wheel


def block(name: str) -> str:
    return block_of("README.md", f"walk-through: {name}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user's own, with packages that must not be taken for the service's."""
    directory = tmp_path_factory.mktemp("readme")
    for name in ("app", "worker"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text("raise SystemExit('not this one')")
    link_embedded_model(directory / "data")
    subprocess.run([install_wheel() / "tunery", "examples"], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[InstalledService]:
    with InstalledService(place / "data") as service:
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


def test_the_client_walk_through_ends_with_the_adapter(client_output: str, place: Path) -> None:
    assert client_output.startswith("succeeded ft:smollm2-135m-instruct:tunery:")
    assert (place / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("client_output")
def test_peft_loads_the_adapter_as_the_readme_says(place: Path) -> None:
    shown = run_python(block("peft") + "\nprint(type(tuned).__name__)", place)

    assert shown.strip() == "PeftModelForCausalLM"


def test_a_job_is_run_again_and_the_service_examined_and_backed_up(
    place: Path, service: InstalledService, curl_output: str
) -> None:
    with service.client() as client:
        job = client.fine_tuning.jobs.list().data[-1].id

    printed = run_bash(block("durability"), place, TUNERY_URL=service.base_url, JOB=job)

    assert f'"rerun_of":"{job}"' in printed
    assert (place / "backups/monday/backup.json").is_file()
