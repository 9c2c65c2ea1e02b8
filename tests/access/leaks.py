"""Finds the methods of a project's repositories that reach another project."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Delete, Select, Table, Update, event
from sqlalchemy.orm import ORMExecuteState
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList
from sqlalchemy.sql.selectable import Alias, Join

from app.core.access import DEFAULT_PROJECT_ID
from app.core.db.base import Base, Page
from app.core.db.repositories.projects.usage import Usage
from app.core.db.repositories.webhooks import Deliveries
from app.core.db.session import Database, Session
from app.core.errors import NotFoundError
from tests.access.project_calls import OTHER_PROJECT, World, find_repositories

OF_A_JOB = {"steps", "attempts", "job_metadata"}
"""Tables whose rows name only their job: a query on them must name a job of the project."""

Statement = Select[Any] | Update | Delete


def tables_of(source: Any) -> Iterator[Any]:
    """The tables that a FROM consists of, without those that only complete a row of another."""
    if isinstance(source, Join):
        yield from tables_of(source.left)
        if not source.isouter:
            yield from tables_of(source.right)
    else:
        yield source


def sources_of(statement: Statement) -> list[Any]:
    if isinstance(statement, Select):
        return [table for each in statement.get_final_froms() for table in tables_of(each)]
    return [statement.table]


def conditions_of(statement: Statement) -> Iterator[Any]:
    """What a statement requires of every row."""
    pending = list(getattr(statement, "_where_criteria", ()))
    while pending:
        condition = pending.pop()
        if isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            pending += condition.clauses
        else:
            yield condition


def is_fenced(statement: Any) -> bool:
    """Whether a statement is limited to the job of a lease, which a worker holds."""
    names = {getattr(getattr(each, "left", None), "name", "") for each in conditions_of(statement)}
    return "worker_id" in names


def is_limited(source: Any, statement: Statement, bound: Any) -> bool:
    """Whether a statement requires a row of `source` to be the project's."""
    return any(
        isinstance(condition, BinaryExpression)
        and condition.operator is operators.eq
        and getattr(condition.left, "name", "") == "project_id"
        and condition.left.table.name == source.name
        and isinstance(condition.right, BindParameter)
        and (bound or {}).get(condition.right.key, condition.right.value) == DEFAULT_PROJECT_ID
        for condition in conditions_of(statement)
    )


def table_name(source: Any) -> str:
    element = source.element if isinstance(source, Alias) else source
    return element.name if isinstance(element, Table) else ""


def find_unlimited(statement: Any, bound: Any) -> list[str]:
    """The tables that a statement or a subquery of it reads or changes in every project."""
    parts = [
        each for each in visitors.iterate(statement) if isinstance(each, (Select, Update, Delete))
    ]
    limited = {
        table_name(source)
        for part in parts
        for source in sources_of(part)
        if is_limited(source, part, bound)
    }
    unlimited: list[str] = []
    for part in parts:
        for source in sources_of(part):
            name = table_name(source)
            owned = name in OWNED and not is_limited(source, part, bound)
            # A subquery may be about the rows of the statement around it, which is limited.
            if owned and (part is statement or name not in limited):
                unlimited.append(name)
            if name in OF_A_JOB and "jobs" not in limited:
                unlimited.append(name)
    return unlimited


OWNED = {table.name for table in Base.metadata.sorted_tables if "project_id" in table.columns}


def find_unlimited_methods(
    database: Database, world: World, methods: Sequence[str]
) -> dict[str, list[str]]:
    """The methods that send a statement that is not limited to their project, and its tables."""
    unlimited: dict[str, list[str]] = {}
    for method in methods:
        found: list[str] = []

        def look(state: ORMExecuteState, found: list[str] = found) -> None:
            loads_more = state.is_relationship_load or state.is_column_load  # of a row it found
            if not (loads_more or is_fenced(state.statement)):
                found.extend(find_unlimited(state.statement, state.parameters))

        with database.reading() as session:  # changes are discarded
            event.listen(session, "do_orm_execute", look)
            find_results(world, session, method, DEFAULT_PROJECT_ID)
        if found:
            unlimited[method] = found
    return unlimited


def find_reaching_methods(
    database: Database, world: World, methods: Sequence[str]
) -> dict[str, object]:
    """The methods that find or change something of another project, and what it is."""
    with database.reading() as session:
        before = own_rows(session)
    reaching: dict[str, object] = {}
    for method in methods:
        with database.reading() as session:  # changes are discarded
            results = find_results(world, session, method, OTHER_PROJECT)
            found = [result for result in results if not is_nothing(result)]
            if found or own_rows(session) != before:
                reaching[method] = found or "changed something"
    return reaching


def find_results(world: World, session: Session, method: str, project_id: str) -> list[Any]:
    """The results of a method in a project, None where nothing was found."""
    repository_name, name = method.split(".")
    repository = find_repositories()[repository_name](session, project_id)
    results: list[Any] = []
    for each in world.calls()[method]:
        with suppress(NotFoundError):
            results.append(each.on(repository, name))
    session.flush()
    return results


def own_rows(session: Session) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of the default project, and those of tables that only name a job."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for table in Base.metadata.sorted_tables:
        query = table.select()
        if "project_id" in table.columns:
            query = query.where(table.c.project_id == DEFAULT_PROJECT_ID)
        rows[table.name] = sorted(map(tuple, session.execute(query)), key=repr)
    return rows


def is_nothing(result: Any) -> bool:
    if isinstance(result, dict):
        return all(count == Deliveries() for count in result.values())
    if result in (Page([], has_more=False), Usage(0, {}, 0.0, 0)):
        return True
    return result in (None, [], 0, (0, 0))
