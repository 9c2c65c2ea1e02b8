"""`tunery projects`: what an operator sees and does without the API."""

import json
import re

import pytest
from typer.testing import CliRunner

from app.commands.service import commands
from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Project
from app.core.db.session import Database
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_job, add_project, list_blobs

pytestmark = pytest.mark.only_sqlite


@pytest.fixture(autouse=True)
def _environment(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(commands, ["projects", *arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def read_limits(database: Database, project_id: str) -> tuple[int | None, float | None]:
    with database.reading() as session:
        project = session.get(Project, project_id)
        assert project is not None
        return project.max_queued_jobs, project.max_processor_hours


def test_limits_are_set_and_removed(database: Database) -> None:
    add_project(database, "proj-a")

    output = run("set", "proj-a", "--max-queued-jobs", "1000", "--max-processor-hours", "2.5")
    before = read_limits(database, "proj-a")
    run("set", "proj-a", "--max-queued-jobs", "none")

    assert "max_queued_jobs=1,000, max_processor_hours=2.5" in output
    assert (before, read_limits(database, "proj-a")) == ((1000, 2.5), (None, 2.5))
    assert "proj-a (proj-a)  max_processor_hours=2.5" in run("list")
    shown = {project["id"]: project for project in json.loads(run("list", "--json"))}
    assert shown["proj-a"]["max_processor_hours"] == 2.5
    used = {each["project_id"] for each in json.loads(run("usage", "--json"))}
    assert used == shown.keys()


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "", "1e400"])
def test_a_limit_that_is_no_number_is_refused(value: str) -> None:
    output = run("set", DEFAULT_PROJECT_ID, f"--max-queued-jobs={value}", exit_code=2)

    assert "--max-queued-jobs" in output


def test_an_unknown_project_is_named(database: Database) -> None:
    assert "No such project: nope" in run("set", "nope", exit_code=2)
    assert "No such project: nope" in run("erase", "nope", "--yes", exit_code=2)


def test_usage_has_a_line_for_each_project(database: Database) -> None:
    add_job(database)

    output = run("usage")

    assert re.search(r"Default project \(proj-default\)  0.0 MiB; 1 queued jobs; in \d", output)


def test_a_project_is_erased_after_a_question(database: Database, store: LocalBlobStore) -> None:
    add_project(database, "proj-a")
    add_file(database, store, project_id="proj-a")

    run("erase", "proj-a", exit_code=1)  # nobody has answered
    assert list_blobs(store)
    output = run("erase", "proj-a", "--yes")

    assert "proj-a is erased." in output
    assert list_blobs(store) == []
