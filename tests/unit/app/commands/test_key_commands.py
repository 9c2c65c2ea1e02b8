"""`tunery keys`, and a start that is safe before there is a key."""

import json
import re
import stat
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import event
from typer.testing import CliRunner, Result

from app.commands.service import commands
from app.core.access import Scope
from app.core.access.api_keys import hash_key, read_key_id
from app.core.clock import utc_now
from app.core.db.repositories.projects.access import KeyRepository
from app.core.db.session import Database
from app.core.errors import DatabaseBusyError, OutcomeUnknownError
from app.core.settings import Settings
from app.maintenance.keys import KeyFileError, KeyNeededError, secure_start
from tests.builders import add_key, dump_tables

pytestmark = pytest.mark.usefixtures("untouched_logging")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty, away from the `.env` that a developer may have."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(commands, ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_a_key_is_shown_once_and_stored_as_a_hash(place: Path) -> None:
    made = run("create", "--project", "Team A", "--scope", "read", "--scope", "write")
    key = made.stdout.strip()

    assert read_key_id(key) is not None
    assert re.search(r"Created the project Team A \(proj_\w{26}\)", made.stderr)
    assert "read, write; does not expire. Keep it" in made.stderr
    database = Database(f"sqlite:///{place}/data/tunery.db")
    stored = repr(dump_tables(database))
    database.dispose()
    assert hash_key(key) in stored
    assert key not in stored
    assert key.split("_")[2] not in stored
    assert key not in run("list").output


def test_a_second_key_of_a_project_is_of_the_same_project() -> None:
    run("create", "--project", "Team A")

    again = run("create", "--project", "Team A", "--expires", "90d")

    assert "Created" not in again.stderr
    in_90_days = utc_now() + timedelta(days=90)
    assert f"expires {in_90_days:%Y-%m-%d}" in again.stderr
    projects = {re.search(r"proj_\w+", line)[0] for line in run("list").stdout.splitlines()}  # pyright: ignore[reportOptionalSubscript]
    assert len(projects) == 1


def test_the_list_says_what_became_of_each_key() -> None:
    first = read_key_id(run("create", "--scope", "admin").stdout.strip()) or ""
    run("create", "--expires", "12h")
    run("revoke", first)

    one, two = run("list").stdout.splitlines()

    assert one.startswith(f"{first}  Default project (proj-default)  admin  revoked 2")
    shown = json.loads(run("list", "--json").stdout)
    assert [key["owner_project_access"] for key in shown] == ["inactive", "active"]
    assert shown[0]["id"] == first
    assert "read, sample, write  expires 2" in two
    assert "never used" in two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--expires", "soon"], "not a lifetime"),
        (["create", "--expires", "0d"], "not a lifetime"),
        (["create", "--scope", "root"], "root"),
        (["create", "--project", "../x"], "cannot be the name of a project"),
        (["create", "--project", ""], "cannot be the name of a project"),
        (["create", "--project", "proj-typo"], "There is no project 'proj-typo'"),
        (["create", "--project", "proj_01typo"], "There is no project 'proj_01typo'"),
        (["revoke", "key_nope"], "There is no key key_nope. List the keys with"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)

    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""


def start(settings: Settings, database: Database, **changes: object) -> None:
    secure_start(settings.model_copy(update=changes), database, now=utc_now())


EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - nothing listens there in these tests


@pytest.mark.parametrize("host", [EVERY_ADDRESS, "::", "", "192.168.1.5", "example.org"])
def test_others_are_not_let_in_without_a_key(
    settings: Settings, database: Database, host: str
) -> None:
    with pytest.raises(KeyNeededError, match="tunery keys create"):
        start(settings, database, host=host)

    add_key(database)
    start(settings, database, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_this_machine_needs_no_key(settings: Settings, database: Database, host: str) -> None:
    start(settings, database, host=host)

    assert settings.model_copy(update={"host": host}).may_be_keyless


def test_the_first_start_writes_a_key_for_its_owner_alone(
    settings: Settings, database: Database, place: Path
) -> None:
    path = place / "admin-key"

    for _ in range(2):  # only the first start writes
        start(settings, database, host=EVERY_ADDRESS, bootstrap_key_file=str(path))

    key = path.read_text().removesuffix("\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with database.reading() as session:
        ((row, project),) = KeyRepository(session).list_all()
    assert (row.sha256, row.scopes) == (hash_key(key), sorted(Scope))
    assert project.id == "proj-default"


@pytest.mark.parametrize("obstacle", ["a file", "a link", "no directory"])
def test_a_first_key_is_never_written_over_something_else(
    settings: Settings, database: Database, place: Path, obstacle: str
) -> None:
    path = place / "admin-key"
    if obstacle == "a file":
        path.write_text("mine")
    elif obstacle == "a link":
        path.symlink_to(place / "elsewhere")
    else:
        path = place / "nowhere" / "admin-key"

    why = "cannot be written" if obstacle == "no directory" else "earlier database, delete it"
    with pytest.raises(KeyFileError, match=why):
        start(settings, database, bootstrap_key_file=str(path))

    with database.reading() as session:
        assert not KeyRepository(session).is_any()
    assert not (place / "elsewhere").exists()


@pytest.mark.parametrize(
    ("failure", "is_left"),
    [(DatabaseBusyError("locked"), False), (OutcomeUnknownError("lost"), True)],
)
def test_the_file_of_a_first_key_that_was_not_stored_is_deleted(
    settings: Settings, database: Database, place: Path, failure: Exception, *, is_left: bool
) -> None:
    """Unless the key may have been stored all the same."""
    path = place / "admin-key"

    def fail(_connection: object) -> NoReturn:
        raise failure

    event.listen(database.engine, "commit", fail)

    with pytest.raises(type(failure)):
        start(settings, database, bootstrap_key_file=str(path))

    assert path.exists() is is_left


def test_a_file_for_the_first_key_asks_for_keys_on_this_machine_too(settings: Settings) -> None:
    changed = settings.model_copy(update={"bootstrap_key_file": "/somewhere"})

    assert settings.may_be_keyless
    assert not changed.may_be_keyless
