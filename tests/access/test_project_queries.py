"""No query of a project's repository reaches another project, whatever ids it is given."""

import pytest

from app.core.db.session import Database
from app.core.storage.local import LocalBlobStore
from tests.access.leaks import find_reaching_methods, find_unlimited_methods
from tests.access.project_calls import World, find_methods
from tests.access.removed_filters import find_filters

pytestmark = pytest.mark.only_sqlite  # the statements are the same on both


@pytest.fixture
def world(database: Database, store: LocalBlobStore) -> World:
    return World(database, store)


def test_every_statement_is_limited_to_the_project(database: Database, world: World) -> None:
    assert find_unlimited_methods(database, world, find_methods()) == {}


def test_another_project_finds_nothing_and_changes_nothing(
    database: Database, world: World
) -> None:
    assert find_reaching_methods(database, world, find_methods()) == {}


def test_each_filter_that_is_removed_is_noticed(database: Database, world: World) -> None:
    filters = find_filters()

    unnoticed: list[str] = []
    for each in filters:
        methods = [name for name in find_methods() if name.startswith(f"{each.repository}.")]
        with each.removed():
            if not find_unlimited_methods(database, world, methods) and not find_reaching_methods(
                database, world, methods
            ):
                unnoticed.append(each.name)

    assert len(filters) > 40
    assert unnoticed == []
