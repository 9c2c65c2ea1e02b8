"""`python -m app doctor`, `backup` and `restore`, as an operator runs them: as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.builders import TEXT_LINE, write_catalogue
from tunery.local_service import LocalService

ROOT = Path(__file__).parents[2]
SPACE = {"ballast_bytes": "1048576", "min_free_bytes": "1048576"}


class Operator:
    """Runs commands on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.environment = {
            **{name: value for name, value in os.environ.items() if "TUNERY" not in name},
            "TUNERY_DATA_DIR": str(data_dir),
            **{f"TUNERY_{name.upper()}": value for name, value in SPACE.items()},
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """What a command says; it must end with this exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            cwd=self.data_dir.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address of an API that runs in the block."""
        log_dir = self.data_dir.parent
        with LocalService(self.data_dir, SPACE, workers=0, log_dir=log_dir) as service:
            yield service.url


def upload(address: str, content: bytes = TEXT_LINE) -> str:
    answer = httpx.post(
        f"{address}/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", content)}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    write_catalogue(tmp_path / "data")
    return Operator(tmp_path / "data")


def test_a_service_is_lost_and_comes_back_from_its_backup(
    operator: Operator, tmp_path: Path
) -> None:
    with operator.serving() as address:
        file_id = upload(address, TEXT_LINE * 100)
        job = httpx.post(
            f"{address}/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id}
        ).json()
        said = operator.run("backup", tmp_path / "backup", "--read-back")
        assert "the sqlite database, and 1 files" in said
        lost_id = upload(address)
        assert "Stop both first" in operator.run("restore", tmp_path / "backup", "--force", code=2)

    new = Operator(tmp_path / "new-machine")
    assert "as it was at" in new.run("restore", tmp_path / "backup")
    assert "bad" not in new.run("doctor", "--deep", "--repair")
    with new.serving() as address:
        content = httpx.get(f"{address}/v1/files/{file_id}/content").content
        assert content == TEXT_LINE * 100
        restored = httpx.get(f"{address}/v1/fine_tuning/jobs/{job['id']}").json()
        assert restored["status"] == "validating_files"
        assert httpx.get(f"{address}/v1/files/{lost_id}").status_code == 404


def test_the_doctor_looks_at_a_running_and_at_a_stopped_service(operator: Operator) -> None:
    assert "There is no database" in operator.run("doctor", code=2)
    with operator.serving() as address:
        file_id = upload(address)
        assert "ok   blobs         1 are there, with the right sizes" in operator.run("doctor")

    (operator.data_dir / "blobs/files" / file_id).unlink()
    findings = json.loads(operator.run("doctor", "--json", code=1))
    assert [one["check"] for one in findings if one["level"] == "bad"] == ["blobs"]


def test_a_damaged_backup_is_refused(operator: Operator, tmp_path: Path) -> None:
    with operator.serving() as address:
        file_id = upload(address)
    operator.run("backup", tmp_path / "backup", "--copy")
    (tmp_path / "backup" / "blobs/files" / file_id).write_bytes(b"x")
    new = Operator(tmp_path / "new-machine")

    assert "not the file that was written" in new.run("restore", tmp_path / "backup", code=2)
    assert f"files/{file_id}" in new.run("restore", tmp_path / "backup", "--accept-damage", code=1)
    assert "files/" in new.run("doctor", code=1)


def test_a_service_that_has_lost_bytes_is_backed_up_with_a_warning(
    operator: Operator, tmp_path: Path
) -> None:
    with operator.serving() as address:
        file_id = upload(address)
    (operator.data_dir / "blobs/files" / file_id).unlink()

    said = operator.run("backup", tmp_path / "backup", code=1)

    assert f"no longer has it: files/{file_id}" in said
    assert "exists already" in operator.run("backup", tmp_path / "backup", code=2)
