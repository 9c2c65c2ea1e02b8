"""The commands that move an installation between stores: `tunery store`."""

import dataclasses
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.core.clock import steady_s
from app.core.command_line.exit_codes import CommandGroup
from app.core.command_line.json_output import AsJson, print_json
from app.core.disk import MIB
from app.core.errors import OperatorError, ServiceError
from app.core.occupancy import open_database
from app.core.settings import read_settings
from app.maintenance.store.copy_blobs import PARALLEL, BlobCopier, CopyReport, Total, iterate_blobs
from app.maintenance.store.moving import (
    StoreStatus,
    finish_move,
    measure_stores,
    prepare_copy,
    prepare_rest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

store = typer.Typer(
    cls=CommandGroup,
    help="Show the store of files, and move to another one.",
    no_args_is_help=True,
)

_ON_TERMINAL_S = 0.5
_IN_LOG_S = 10.0
"""Pause between two lines of progress, in seconds."""


class StoreAwayCommandError(OperatorError):
    """A store does not answer. The same command continues what it has begun."""

    may_pass = True


@store.command("copy")
def copy(
    url: Annotated[
        str | None,
        typer.Argument(
            help="Store to copy to before the service moves there, such as s3://bucket/prefix. "
            "Without it, the command copies what is only in the previous store of a service that "
            "has moved.",
            metavar="[URL]",
        ),
    ] = None,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read what is there already, and compare it.")
    ] = False,
    parallel: Annotated[
        int, typer.Option(help="Number of files to copy at once.", min=1, max=64)
    ] = PARALLEL,
    as_json: AsJson = False,
) -> None:
    """Copy all files to another store while the service runs. Repeat it if it was interrupted."""
    settings = read_settings()
    with open_database(settings) as database, _store_errors():
        plan = (
            prepare_rest(settings, database)
            if url is None
            else prepare_copy(settings, database, url)
        )
        total = Total.of(iterate_blobs(database))
        copier = BlobCopier(database, plan.source, plan.target, verifies=verify, parallel=parallel)
        report = copier.copy_all(iterate_blobs(database), _show_progress(total))
        is_done = not report.damaged
        if is_done and url is None:
            finish_move(database, plan)
    if as_json:
        print_json([dataclasses.asdict(report)])
    else:
        _print_report(report)
        if is_done:
            typer.echo(plan.next_step)
    raise typer.Exit(int(not is_done))


@store.command("status")
def status(*, as_json: AsJson = False) -> None:
    """Show what is in the store and, while the service moves, what is only in the previous one."""
    settings = read_settings()
    with open_database(settings) as database, _store_errors():
        found = measure_stores(settings, database)
    if as_json:
        print_json([_as_json(found)])
    else:
        for line in found.describe():
            typer.echo(line)
    raise typer.Exit(int(found.missing > 0))


def _as_json(found: StoreStatus) -> dict[str, Any]:
    moved_at = None if found.moved_at is None else found.moved_at.isoformat()
    described = dataclasses.asdict(found) | {"moved_at": moved_at}
    return described | {"needs_previous": found.needs_previous}


def _print_report(report: CopyReport) -> None:
    for damage in report.damaged:
        typer.echo(f"Not copied: {damage}")
    if report.damaged:
        typer.echo(
            "Run `tunery doctor` to see what these belong to. Restore a backup, or delete them, "
            "and run this command again."
        )
    there = report.blobs - report.copied - report.gone - len(report.damaged)
    typer.echo(
        f"{report.copied:,} files copied ({report.copied_bytes / MIB:,.1f} MiB), {there:,} were "
        f"there already, {report.gone:,} were deleted meanwhile, {len(report.damaged):,} are "
        "damaged."
    )


def _show_progress(total: Total) -> "Callable[[CopyReport], None]":
    """Returns what prints a line now and then: files, bytes, rate and the time that is left."""
    pause_s = _ON_TERMINAL_S if sys.stderr.isatty() else _IN_LOG_S
    began_s = last_s = steady_s()

    def show(report: CopyReport) -> None:
        nonlocal last_s
        now_s = steady_s()
        if now_s - last_s < pause_s:
            return
        last_s = now_s
        rate = report.bytes / (now_s - began_s)
        left_s = max(0, total.bytes - report.bytes) / rate if rate else 0
        typer.echo(
            f"{report.blobs:,} of {total.blobs:,} files, {report.bytes / MIB:,.0f} of "
            f"{total.bytes / MIB:,.0f} MiB, {rate / MIB:,.1f} MiB/s, about {left_s:,.0f} s left",
            err=True,
        )

    return show


@contextmanager
def _store_errors() -> "Generator[None]":
    """End the command with what the operator can do when a store does not answer."""
    try:
        yield
    except ServiceError as error:
        why = getattr(error, "for_operator", None)
        if why is None:
            raise
        raise StoreAwayCommandError(f"{why} Run the command again to continue.") from error
