"""How a command ends that cannot do its work: with one line on standard error and an exit code."""

import sys
from typing import Any

from typer.core import TyperGroup

from app.core.errors import (
    DatabaseAwayError,
    DatabaseBusyError,
    OperatorError,
    StorageFullError,
    StoreAwayError,
)

CANNOT_RUN = 2
"""Exit code of a command that could not run, and would fail again without a change."""

TRY_AGAIN = 3
"""Exit code of a command for which the database was busy, or the service was busy or away. It may
succeed the next time."""

EXPECTED = (OperatorError, DatabaseBusyError, StoreAwayError, StorageFullError, OSError)
"""Errors that end a command with their message instead of a traceback."""


class CommandGroup(TyperGroup):
    """Commands whose expected errors are one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            is_nested = ctx.parent is not None
            name = f"{ctx.info_name} {ctx.invoked_subcommand}"
            raise SystemExit(
                report(name if is_nested else ctx.invoked_subcommand, error)
            ) from error


def report(command: str, error: Exception) -> int:
    """Print why the command cannot do its work. Returns its exit code."""
    sys.stderr.write(f"{command}: {_describe(error)}\n")
    match error:
        case DatabaseAwayError():
            return CANNOT_RUN
        case DatabaseBusyError() | OperatorError(may_pass=True):
            return TRY_AGAIN
        case _:
            return CANNOT_RUN


def _describe(error: Exception) -> str:
    match error:
        case DatabaseAwayError() | StoreAwayError():
            return error.for_operator
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}."
        case _:
            return str(error)
