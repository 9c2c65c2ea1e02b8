"""`tunery store copy` and `tunery store status`, as an operator sees them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.commands.service import commands
from app.commands.store import BlobCopier
from app.core.db.blob_keys import NamedBlob
from app.core.db.migrate import prepare
from app.core.db.session import Database
from app.core.errors import StoreAwayError
from app.core.installation import connect_store
from app.core.settings import read_settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.marker import write_marker
from app.core.storage.opening import open_store_at
from app.core.storage.s3 import S3BlobStore
from app.maintenance.store.copy_blobs import Outcome
from tests.builders import add_file
from tests.stores.servers import environment_of

pytestmark = pytest.mark.only_sqlite

COPY = BlobCopier.copy


class Operator:
    """Runs commands with the settings that are in the environment."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.home = f"file://{root}/data/blobs"
        self.new = f"file://{root}/new"
        self.set(DATA_DIR=str(root / "data"))
        (root / "data").mkdir()
        self.database = Database(f"sqlite:///{root}/data/tunery.db")
        prepare(self.database)

    def set(self, **values: str) -> None:
        for name, value in values.items():
            self.patch.setenv(f"TUNERY_{name}", value)

    def start(self) -> BlobStore:
        """Start the service as a process that stays. Returns its store."""
        return connect_store(read_settings(), self.database, may_move=True).store

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(commands, ["store", *arguments])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    def refused(self, *arguments: str, code: int = 2) -> str:
        """What a command that cannot work says: one line, and only to standard error."""
        result = self.run(*arguments, code=code)
        (line,) = result.stderr.splitlines()
        assert result.stdout == ""
        assert line.startswith(f"store {arguments[0]}: ")
        return line


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    operator = Operator(tmp_path, monkeypatch)
    yield operator
    operator.database.dispose()


def test_each_step_says_what_the_next_one_is(operator: Operator) -> None:
    add_file(operator.database, operator.start())
    assert operator.run("status").stdout.splitlines() == [
        f"present store   {operator.home}: 1 files, 0.0 MiB",
        "in use          1 files, 0.0 MiB",
        "The service does not move.",
    ]

    first = operator.run("copy", operator.new).stdout
    assert first.startswith("1 files copied (0.0 MiB), 0 were there already")
    settings = dict(re.findall(r"^  TUNERY_(\w+)=(\S+)$", first, re.MULTILINE))
    assert settings == {"STORE_URL": operator.new, "STORE_PREVIOUS_URL": operator.home}
    assert "Then run `tunery store copy` with the same settings." in first

    operator.set(**settings)
    assert "no process of it has started" in operator.refused("copy")
    add_file(operator.database, operator.start())
    operator.set(STORE_URL="", STORE_PREVIOUS_URL="")
    assert "set TUNERY_STORE_PREVIOUS_URL to" in operator.refused("status")
    operator.set(**settings)
    found = operator.run("status").stdout
    assert "Run `tunery store copy`. TUNERY_STORE_PREVIOUS_URL is still needed." in found

    last = operator.run("copy").stdout
    assert last.startswith("0 files copied (0.0 MiB), 2 were there already")
    assert "Remove TUNERY_STORE_PREVIOUS_URL and restart every process" in last
    assert operator.run("copy").stdout == last
    assert "can be removed, and the previous store emptied" in operator.run("status").stdout


def test_the_same_as_json(operator: Operator) -> None:
    file = add_file(operator.database, operator.start())
    assert json.loads(operator.run("copy", operator.new, "--json").stdout) == [
        {
            "blobs": 1,
            "bytes": file.bytes,
            "copied": 1,
            "copied_bytes": file.bytes,
            "gone": 0,
            "damaged": [],
        }
    ]
    operator.set(STORE_URL=operator.new, STORE_PREVIOUS_URL=operator.home)
    operator.start()

    (found,) = json.loads(operator.run("status", "--json").stdout)

    assert (found["url"], found["previous_url"]) == (operator.new, operator.home)
    assert (found["previous_state"], found["needs_previous"]) == ("open", True)
    assert found["moved_at"].startswith("20")
    assert found["only_in_previous"] == {"blobs": 0, "bytes": 0}


def test_an_installation_without_files_moves_as_well(operator: Operator) -> None:
    operator.start()

    assert operator.run("copy", operator.new).stdout.startswith("0 files copied")


def test_a_copy_that_broke_off_is_continued(operator: Operator) -> None:
    store = operator.start()
    for _ in range(3):
        add_file(operator.database, store)
    copied: list[str] = []

    def copy_one(copier: BlobCopier, blob: NamedBlob) -> tuple[Outcome, str]:
        if copied:
            raise StoreAwayError(for_operator="The blob store s3://b/p cannot be used: reset.")
        copied.append(blob.key)
        return COPY(copier, blob)

    operator.patch.setattr(BlobCopier, "copy", copy_one)
    said = operator.refused("copy", operator.new, "--parallel", "1", code=3)
    assert said.endswith("cannot be used: reset. Run the command again to continue.")
    operator.patch.setattr(BlobCopier, "copy", COPY)

    assert operator.run("copy", operator.new).stdout.startswith(
        "2 files copied (0.0 MiB), 1 were there already"
    )


def test_what_is_lost_is_named_and_ends_the_command_with_1(operator: Operator) -> None:
    store = operator.start()
    file = add_file(operator.database, store)
    store.delete(file.blob_key)

    said = operator.run("copy", operator.new, code=1).stdout

    assert f"Not copied: {file.blob_key} ({file.id}) is missing" in said
    assert "Run `tunery doctor`" in said
    assert "restart every process" not in said
    assert "missing         1 files" in operator.run("status", code=1).stdout


def test_progress_goes_to_standard_error(operator: Operator) -> None:
    add_file(operator.database, operator.start())
    operator.patch.setattr("app.commands.store._IN_LOG_S", 0)

    result = operator.run("copy", operator.new, "--json")

    assert re.match(r"1 of 1 files, 0 of 0 MiB, [\d.]+ MiB/s, about 0 s left\n", result.stderr)
    assert json.loads(result.stdout)


@pytest.mark.parametrize("url", ["ftp://somewhere", "my-bucket/tunery", "s3://key:secret@bucket/p"])
def test_a_wrong_url_is_refused_and_no_secret_repeated(operator: Operator, url: str) -> None:
    operator.start()

    said = operator.refused("copy", url)

    assert "The URL names no store: it must" in said
    assert "secret" not in said


def test_no_copy_goes_to_a_foreign_store(operator: Operator) -> None:
    operator.start()
    write_marker(open_store_at(operator.new, read_settings()), "store-of-another")

    assert "belongs to another installation" in operator.refused("copy", operator.new)
    assert "is the store that the service uses" in operator.refused("copy", operator.home)
    assert "one inside the other" in operator.refused("copy", f"{operator.home}/inside")
    assert "Name the store to copy to" in operator.refused("copy")


def test_a_store_that_is_away_ends_the_command_with_3(operator: Operator) -> None:
    for name, value in environment_of("http://127.0.0.1:1").items():
        operator.patch.setenv(name, value)
    operator.patch.setitem(S3BlobStore.__init__.__kwdefaults__, "patience_s", 0.2)
    add_file(operator.database, operator.start())

    said = operator.refused("copy", "s3://bucket/tunery", code=3)

    assert "s3://bucket/tunery" in said
    assert said.endswith("Run the command again to continue.")
