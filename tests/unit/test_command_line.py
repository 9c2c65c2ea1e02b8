"""The commands of `tunery` and `python -m app`, as far as no process has to be started for them."""

import re
import socket
from pathlib import Path

import pytest
from sqlalchemy import text
from typer import Typer
from typer.testing import CliRunner, Result

from app.commands.service import commands
from app.core.db.migrate import upgrade
from app.core.db.session import Database
from app.core.settings import read_settings
from app.core.version import VERSION
from tunery.cli import cli

MAINTENANCE = (
    "api",
    "openapi",
    "doctor",
    "backup",
    "restore",
    "keys",
    "verify",
    "signing-key",
)
OWN = ("serve", "worker", "models", "examples", "init", "schema", "version")

pytestmark = pytest.mark.usefixtures("untouched_logging")
every_command = pytest.mark.parametrize(
    ("group", "name"),
    [(commands, name) for name in MAINTENANCE] + [(cli, name) for name in (*MAINTENANCE, *OWN)],
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty, away from the `.env` that a developer may have."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(group: Typer, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == code, result.output
    return result


@every_command
def test_every_command_is_in_the_help_and_has_help_of_its_own(group: Typer, name: str) -> None:
    assert f" {name} " in run(group, "--help").stdout
    assert "--help" in run(group, name, "--help").stdout


@pytest.mark.parametrize("group", [commands, cli])
def test_a_command_that_is_not_known_is_refused(group: Typer) -> None:
    assert "No such command 'tidy'" in run(group, "tidy", code=2).stderr


def test_the_bare_command_shows_what_there_is() -> None:
    assert "serve" in run(cli, code=2).output


def test_the_version_names_what_it_runs_on() -> None:
    said = run(cli, "version").stdout

    assert said.startswith(f"tunery {VERSION}\n")
    assert "\ntorch 2." in said


def test_examples_are_written_once_and_never_over_what_is_there(place: Path) -> None:
    (place / "examples").mkdir()
    (place / "examples" / "quickstart.py").write_text("mine", "utf-8")

    run(cli, "examples")

    assert (place / "examples" / "quickstart.py").read_text("utf-8") == "mine"
    assert (place / "examples" / "lighthouse-train.jsonl").stat().st_size > 1000
    assert run(cli, "examples").stdout == ""


@pytest.mark.parametrize("group", [commands, cli])
def test_a_setting_that_is_not_allowed_is_named_without_a_traceback(
    group: Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_LEASE_S", "soon")

    said = run(group, "doctor", code=2).stderr

    assert said.startswith("doctor: TUNERY_LEASE_S: Input should be a valid number")


def test_a_port_that_is_taken_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_PORT", "0")  # the option wins, and the test leaves no trace
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        said = run(cli, "api", "--port", str(port), code=2).stderr

    assert f"api: Cannot listen on 127.0.0.1:{port}: Address already in use." in said


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_database_of_a_newer_version_ends_a_start_with_one_line(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATA_DIR", str(place / "data"))
    monkeypatch.setenv("TUNERY_PORT", "0")
    database = Database(read_settings().resolved_database_url)
    upgrade(database)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()

    said = run(cli, name, code=2).stderr

    assert said.startswith(f"{name}: The database has schema 9999, from a newer version")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("worker",),
        ("api",),
        ("openapi",),
        ("doctor",),
        ("backup", "there"),
        ("restore", "there"),
        ("models", "list"),
        ("models", "install", "ours"),
        ("models", "remove", "ours"),
    ],
)
def test_every_command_refuses_a_setting_that_there_is_not(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_LEASES", "30")

    said = run(cli, *arguments, code=2).stderr

    name = " ".join(arguments[:2]) if arguments[0] == "models" else arguments[0]
    assert said == (
        f"{name}: TUNERY_LEASES is not a setting. Did you mean TUNERY_LEASE_S? docs/settings.md "
        "lists every setting.\n"
    )


@pytest.mark.parametrize("arguments", [("doctor",), ("backup", "there")])
def test_a_data_directory_that_is_not_there_is_named(arguments: tuple[str, ...]) -> None:
    said = run(cli, *arguments, code=2).stderr

    assert re.fullmatch(r"\w+: /\S+/data is no data directory: No such file.*\n", said)


def test_a_database_that_is_no_database_ends_a_backup_with_one_line(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data" / "tunery.db").write_bytes(b"no database " * 1000)

    said = run(cli, "backup", "there", code=2).stderr

    assert re.fullmatch(
        r"backup: The database data/tunery.db: file is not a database\. Keep .*\n", said
    )


def test_a_key_is_rotated_and_its_old_public_key_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATA_DIR", str(place / "data"))
    first = run(cli, "signing-key", "show").stdout

    second = run(cli, "signing-key", "rotate").stdout

    assert first.startswith("# ")
    assert ", in use\n-----BEGIN PUBLIC KEY-----\n" in first
    assert run(cli, "signing-key", "show").stdout == second != first
    shown = run(cli, "signing-key", "show", "--all").stdout
    assert shown == second + first.replace("in use", "retired")
    assert "PRIVATE" not in shown


@pytest.mark.parametrize("content", ["", "-----BEGIN PRIVATE KEY-----\n"])
def test_a_file_without_a_public_key_cannot_verify(content: str, place: Path) -> None:
    (place / "key").write_text(content)

    said = run(cli, "verify", str(place), "--key", "key", code=2).stderr

    assert said.startswith("verify: key: it has no public key")
    assert said.endswith("Get it from `tunery signing-key show`.\n")
