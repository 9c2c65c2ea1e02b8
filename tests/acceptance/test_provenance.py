"""An adapter's origin, checked by its user without the service, and who else can read the data."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.processes import InstalledService
from tests.wheel import install_wheel


def tunery(data_dir: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"TUNERY_DATA_DIR": str(data_dir)}
    command = [install_wheel() / "tunery", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def public_key(service: InstalledService, tmp_path: Path) -> Path:
    """The service's public key, as its operator hands it out."""
    shown = tunery(service.data_dir, "signing-key", "show")
    (tmp_path / "tunery.pub").write_text(shown.stdout)
    return tmp_path / "tunery.pub"


@pytest.fixture
def archive(service: InstalledService, finished_job: FineTuningJob, tmp_path: Path) -> Path:
    """The downloaded adapter."""
    answer = httpx.get(f"{service.base_url}/fine_tuning/jobs/{finished_job.id}/adapter")
    (tmp_path / "adapter.zip").write_bytes(answer.content)
    return tmp_path / "adapter.zip"


def test_a_downloaded_adapter_tells_what_was_trained_on_what(
    archive: Path,
    public_key: Path,
    service: InstalledService,
    finished_job: FineTuningJob,
    tmp_path: Path,
) -> None:
    file = httpx.get(f"{service.base_url}/files/{finished_job.training_file}").json()

    done = tunery(tmp_path / "nowhere", "verify", archive, "--key", public_key)

    assert (done.returncode, done.stderr) == (0, "")
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["verified"].startswith(f"{archive}: 11 files, signed with key ")
    assert said["job"].startswith(f"{finished_job.id}, attempt 1, step ")
    assert said["base_model.repo"] == '"our-tiny"'
    assert len(said["base_model.sha256"]) == 66
    assert said["training_file.file_id"] == f'"{finished_job.training_file}"'
    assert said["training_file.bytes"] == str(file["bytes"])
    assert len(said["training_file.sha256"]) == 66
    assert said["config.lora.rank"] == "8"
    assert said["libraries.torch"].startswith('"2.')
    assert not (tmp_path / "nowhere").exists()


def test_an_adapter_of_another_service_is_not_verified(
    archive: Path, service: InstalledService, tmp_path: Path
) -> None:
    other = tunery(tmp_path / "other", "signing-key", "show").stdout
    (tmp_path / "other.pub").write_text(other)

    done = tunery(tmp_path / "other", "verify", archive, "--key", tmp_path / "other.pub")

    assert done.returncode == 1
    assert done.stdout.startswith("NOT VERIFIED ")
    assert "by none of the given keys" in done.stdout


def modes_below(path: Path) -> Iterator[tuple[Path, int]]:
    """Permissions of a file or directory, and of all in it. A worker may delete some meanwhile."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):  # it has no permissions
            return
        yield path, stat.S_IMODE(mode)
        if stat.S_ISDIR(mode):
            for child in path.iterdir():
                yield from modes_below(child)


def test_nobody_else_can_read_what_the_service_stores(
    service: InstalledService, finished_job: FineTuningJob
) -> None:
    """Nobody but the test itself: it installed the base model, before the service started."""
    assert finished_job.status == "succeeded"
    models = service.data_dir / "models"  # the sampler reads it as a user of its own

    modes = dict(modes_below(service.data_dir))

    assert {"tunery.db", "key.pem", "manifest.json.sig", "ballast"} <= {path.name for path in modes}
    assert {
        str(path): oct(mode)
        for path, mode in modes.items()
        if mode & 0o077 and models not in (path, *path.parents)
    } == {}
