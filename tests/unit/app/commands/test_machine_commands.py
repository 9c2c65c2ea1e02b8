"""`tunery drain`, `tunery undrain` and `tunery machines`."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.commands.service import commands
from app.core.clock import utc_now
from app.core.db.migrate import prepare
from app.core.db.repositories.machines.drains import Drains
from app.core.db.repositories.workers import WorkerRepository
from app.core.db.session import Database
from tests.builders import build_identity
from tests.unit.app.core.db.test_fitting_workers import build_ability

pytestmark = pytest.mark.only_sqlite


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TUNERY_MACHINE", "ml-1")
    database = Database(f"sqlite:///{tmp_path / 'tunery.db'}")
    prepare(database)
    return database


def beat(database: Database, machine: str, **options: Any) -> None:
    with database.writing() as session:
        worker = build_identity(f"worker-{machine}", host=machine)
        ability = build_ability(machine=machine)
        WorkerRepository(session).beat(worker, now=utc_now(), ability=ability, **options)


def is_drained(database: Database, machine: str) -> bool:
    with database.reading() as session:
        return Drains(session).is_drained(machine)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(commands, arguments)


def test_draining_waits_until_the_workers_know_and_survives_them(shared: Database) -> None:
    beat(shared, "ml-1")
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(invoke("drain")))
    thread.start()
    thread.join(1.5)
    assert thread.is_alive()  # the worker has not said yet that it takes nothing
    assert is_drained(shared, "ml-1")

    beat(shared, "ml-1", is_stopping=True)
    thread.join(10)

    assert results[0].exit_code == 0
    assert results[0].output.splitlines() == [
        "ml-1 is drained.",
        "ml-1 is empty. Stop it, or let it work with tunery undrain.",
    ]
    assert invoke("drain", "--no-wait").output == "ml-1 is drained already.\n"
    assert invoke("undrain").output == "ml-1 takes jobs again.\n"
    assert invoke("undrain").output == "ml-1 was not drained.\n"
    assert not is_drained(shared, "ml-1")


def test_another_machine_is_drained_by_its_name(shared: Database) -> None:
    beat(shared, "ml-2")

    result = invoke("drain", "ml-2", "--no-wait")

    assert (result.exit_code, result.output) == (0, "ml-2 is drained.\n")
    assert is_drained(shared, "ml-2")
    assert not is_drained(shared, "ml-1")


def test_a_name_that_no_worker_has_is_refused_with_those_there_are(shared: Database) -> None:
    beat(shared, "ml-2")

    result = invoke("drain", "ml-22", "--no-wait")

    assert result.exit_code == 2
    assert "Machines with workers: ml-2." in result.output


def test_the_machines_are_listed_with_what_they_can_do(shared: Database) -> None:
    assert invoke("machines").output == "No worker is registered.\n"
    beat(shared, "ml-2", models_in_memory=["tiny"])
    invoke("drain", "ml-2", "--no-wait")

    listed = invoke("machines").output.splitlines()
    (worker,) = json.loads(invoke("machines", "--json").output)

    assert listed[:2] == [
        "ml-2  worker-ml-2  idle  4 cores, 8.0 GB of memory",
        "  runs nothing",
    ]
    assert listed[2].startswith("ml-2 is drained since ")
    assert (worker["machine"], worker["models_in_memory"]) == ("ml-2", ["tiny"])
    assert worker["ability"]["cores"] == 4
