"""Repositories of a project with one filter removed, to see that the tests notice each of them."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import sqlalchemy
from sqlalchemy import Select
from sqlalchemy.sql.elements import BinaryExpression

from tests.access.project_calls import find_repositories

_STARTS = {"_select": "select", "_update": "update", "_delete": "delete"}
"""Methods of `ProjectRepository` that begin a statement, and what begins it without a filter."""


@dataclass(frozen=True)
class Filter:
    """The filters of one function, or of one statement that a module has made before."""

    name: str
    repository: str
    owner: Any
    """The class or the module that has the function or the statement."""
    attribute: str
    without: Any
    """What it is without a filter."""

    @contextmanager
    def removed(self) -> Generator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.owner, self.attribute, self.without)
            yield


class _Remover(ast.NodeTransformer):
    """Removes every condition on the project."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in _STARTS:
                self.count += 1
                node.func = _expression(f"sqlalchemy.{_STARTS[name]}")
            case ast.Attribute(value=ast.Name(id="self"), attr="_owns"):
                self.count += 1
                return _expression("sqlalchemy.true()")
            case _:
                pass
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if "project_id ==" not in ast.unparse(node):
            return node
        self.count += 1
        return _expression("sqlalchemy.true()")


def _expression(source: str) -> Any:
    return ast.parse(source, mode="eval").body


def find_filters() -> list[Filter]:
    """Every function and every statement of these repositories that has a filter."""
    found: list[Filter] = []
    for name, repository in find_repositories().items():
        for attribute, value in vars(repository).items():
            if inspect.isfunction(value) and (without := _without_filters(value)):
                found.append(Filter(f"{name}.{attribute}", name, repository, attribute, without))
        module = sys.modules[repository.__module__]
        for attribute, value in vars(module).items():
            if isinstance(value, Select) and _is_filtered(value):
                found.append(
                    Filter(f"{name}: {attribute}", name, module, attribute, _unfiltered(value))
                )
    return found


def _without_filters(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The function without its filters, or None if it has none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    remover = _Remover()
    remover.visit(tree)
    if not remover.count:
        return None
    cast("ast.FunctionDef", tree.body[0]).name = "without_filters"  # it may call its old name
    names = {**vars(sys.modules[function.__module__]), "sqlalchemy": sqlalchemy}
    exec(compile(ast.fix_missing_locations(tree), "<without filters>", "exec"), names)  # noqa: S102 - our own source
    return cast("Callable[..., Any]", names["without_filters"])


def _is_filter(condition: Any) -> bool:
    return isinstance(condition, BinaryExpression) and (
        getattr(condition.left, "name", "") == "project_id"
    )


def _is_filtered(statement: Select[Any]) -> bool:
    return any(map(_is_filter, statement._where_criteria))


def _unfiltered(statement: Select[Any]) -> Select[Any]:
    copy = statement._generate()
    copy._where_criteria = tuple(
        condition for condition in statement._where_criteria if not _is_filter(condition)
    )
    return copy
