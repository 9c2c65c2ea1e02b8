"""The schema, as real migrations on a real file make it."""

import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect
from sqlalchemy.schema import CheckConstraint

from app.core.db import migrate
from app.core.db.migrate import upgrade
from app.core.db.models import DEFAULT_PROJECT_ID, Base, Project
from app.core.db.session import Database

PROCESSES = 3

BROKEN_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "0002"


def upgrade() -> None:
    op.create_table("half", sa.Column("id", sa.String()))
    op.execute("INSERT INTO half (id) VALUES ('a')")
    raise RuntimeError("the power is gone")
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new/tunery.db"


@pytest.fixture
def empty(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


def tables(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(inspect(connection).get_table_names())


def migrate_when_all_are_ready(url: str, barrier: "multiprocessing.Barrier") -> set[str]:  # pyright: ignore[reportInvalidTypeForm] - a function
    database = Database(url)
    barrier.wait(60)
    upgrade(database)
    return tables(database)


def test_the_migrations_make_what_the_models_say(empty: Database) -> None:
    upgrade(empty)

    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_make_every_constraint_of_the_models(empty: Database) -> None:
    """Alembic does not compare these."""
    upgrade(empty)

    with empty.engine.connect() as connection:
        inspector = inspect(connection)
        for table in Base.metadata.tables.values():
            promised = [
                str(constraint.name)
                for constraint in table.constraints
                if isinstance(constraint, CheckConstraint)
            ]
            found = [str(one["name"]) for one in inspector.get_check_constraints(table.name)]
            assert sorted(found) == sorted(promised)


def test_the_default_project_is_there_from_the_start(empty: Database) -> None:
    upgrade(empty)

    with empty.reading() as session:
        assert session.get(Project, DEFAULT_PROJECT_ID) is not None


def test_migrating_again_changes_nothing(empty: Database) -> None:
    upgrade(empty)
    before = tables(empty)

    upgrade(empty)

    assert tables(empty) == before


def test_processes_that_start_at_once_all_find_the_schema(url: str, empty: Database) -> None:
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(PROCESSES) as pool:
        barrier = manager.Barrier(PROCESSES)
        found = pool.starmap(migrate_when_all_are_ready, [(url, barrier)] * PROCESSES)

    expected = {*Base.metadata.tables, "alembic_version"}
    assert found == [expected] * PROCESSES
    assert tables(empty) == expected


def test_a_migration_that_fails_half_way_leaves_nothing(
    empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(empty)
    before = tables(empty)
    broken = tmp_path / "migrations"
    shutil.copytree(migrate._MIGRATIONS, broken)
    (broken / "versions" / "9999_broken.py").write_text(BROKEN_MIGRATION)
    monkeypatch.setattr(migrate, "_MIGRATIONS", broken)

    with pytest.raises(RuntimeError, match="the power is gone"):
        upgrade(empty)

    assert tables(empty) == before
    with empty.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0002"
