"""`tunery models`: list, install, remove."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.core.access import DEFAULT_PROJECT_ID
from app.core.base_models import load_catalogue
from app.core.db.migrate import upgrade
from app.core.db.repositories.jobs import JobRepository
from app.core.db.session import Database
from app.core.job.status import JobStatus
from app.core.occupancy import alone
from app.core.settings import read_settings
from benchmarks.support.samples import catalogue_entry, write_entries
from tests.builders import build_job
from tests.models import tiny_model_files, write_files
from worker.commands import models


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory whose catalogue has the model `ours`, from a directory that exists."""
    source = write_files(tmp_path / "source", tiny_model_files())
    data_dir = tmp_path / "data"
    ours = catalogue_entry(
        "ours",
        name="Our model",
        source={"kind": "directory", "path": str(source)},
        licence="Our Licence",
        context_length=4242,
    )
    write_entries(data_dir, ours)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(data_dir))
    return data_dir


@pytest.fixture
def own_database(data_dir: Path) -> Database:
    database = Database(f"sqlite:///{data_dir / 'tunery.db'}")
    upgrade(database)
    return database


def run(*arguments: str, code: int = 0) -> Result:
    """The result of a command, which must end with this exit code."""
    result = CliRunner().invoke(models, arguments)
    assert result.exit_code == code, result.output
    return result


def listed(model_id: str) -> list[str]:
    lines = run("list").stdout.splitlines()
    return next(line.split() for line in lines if line.startswith(f"{model_id} "))


def test_the_list_as_json_has_the_same() -> None:
    shown = json.loads(run("list", "--json").stdout)

    assert {
        "id": "ours",
        "name": "Our model",
        "licence": "Our Licence",
        "context_length": 4242,
        "is_installed": False,
    } in shown


def test_the_list_shows_licence_and_context_length() -> None:
    assert listed("ours") == ["ours", "Our", "model", "Our", "Licence", "4242", "no"]
    assert listed("qwen2-1.5b")[-3:] == ["Apache-2.0", "32768", "no"]


def test_an_installed_model_is_listed_as_installed() -> None:
    run("install", "ours")

    assert listed("ours")[-1] == "yes"


def test_installing_twice_says_that_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    run("install", "ours")
    caplog.clear()

    run("install", "ours")

    assert "ours is already installed" in caplog.text


@pytest.mark.parametrize("command", ["install", "remove"])
def test_an_unknown_model_is_answered_with_the_known_ones(command: str) -> None:
    message = run(command, "qwen9", code=1).stderr

    assert "no base model 'qwen9'" in message
    assert "qwen2-1.5b" in message
    assert "ours" in message


def test_one_failure_does_not_keep_the_other_models_from_being_installed(data_dir: Path) -> None:
    run("install", "qwen9", "ours", code=1)

    assert (data_dir / "models" / "ours" / "tunery.json").exists()


def test_a_failure_says_which_model_and_why(data_dir: Path) -> None:
    (data_dir.parent / "source" / "tokenizer.json").unlink()

    said = run("install", "ours", code=1).stderr

    assert "ours was not installed. It has no tokenizer" in said


def test_a_broken_catalogue_is_reported_without_a_traceback(data_dir: Path) -> None:
    (data_dir / "base_models.toml").write_text("[[model", "utf-8")

    assert "is not TOML" in run("install", "ours", code=2).stderr


def test_a_setting_that_is_not_allowed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_PORT", "http")

    assert "TUNERY_PORT: Input should be a valid integer" in run("list", code=2).stderr


def test_a_removed_model_is_gone_with_its_files(data_dir: Path) -> None:
    run("install", "ours")

    assert "ours is removed" in run("remove", "ours").stdout

    assert load_catalogue(data_dir).find_installed("ours") is None
    assert [path.name for path in (data_dir / "models").iterdir()] == [".ours.lock"]
    assert "ours is not installed" in run("remove", "ours").stdout
    run("install", "ours")


def test_a_model_that_an_unfinished_job_needs_is_not_removed(own_database: Database) -> None:
    run("install", "ours")
    with own_database.writing() as session:
        job = build_job(base_model="ours", status=JobStatus.PAUSED)
        JobRepository(session, DEFAULT_PROJECT_ID).add(job)
        job_id = job.id

    assert f"ours was not removed. Job {job_id} needs it" in run("remove", "ours", code=1).stderr

    assert listed("ours")[-1] == "yes"
    with own_database.writing() as session:
        JobRepository(session, DEFAULT_PROJECT_ID).get(job_id).base_model = "tiny"
    run("remove", "ours")


def test_a_model_is_not_removed_while_the_database_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("install", "ours")
    monkeypatch.setenv("TUNERY_DATABASE_URL", f"postgresql://nobody@/tunery?host={tmp_path}")

    run("remove", "ours", code=2)

    assert listed("ours")[-1] == "yes"


@pytest.mark.parametrize("command", ["install", "remove"])
def test_no_model_changes_while_a_backup_is_restored(command: str) -> None:
    with alone(read_settings()):
        assert "A backup is being restored" in run(command, "ours", code=2).stderr
