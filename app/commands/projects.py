"""The commands that manage projects: `tunery projects`."""

from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from app.core.clock import SECONDS_AN_HOUR, utc_now
from app.core.command_line.json_output import AsJson, print_json
from app.core.disk import MIB
from app.core.errors import NotFoundError, OperatorError
from app.core.installation import require_right_store
from app.core.occupancy import open_database
from app.core.settings import read_settings
from app.core.storage.opening import open_store
from app.schemas.organization.projects import ProjectRead, ProjectUpdate, ProjectUsageRead
from app.services import projects as project_service

projects = typer.Typer(help="List, limit and erase projects.", no_args_is_help=True)

T = TypeVar("T")

_NO_LIMIT = "none"

ProjectName = Annotated[str, typer.Argument(help="Name or id of the project.")]
Limit = Annotated[str | None, typer.Option(metavar="NUMBER|none")]


class NoSuchProjectError(OperatorError):
    """No project has this name or id."""


@projects.command("list")
def list_projects(*, as_json: AsJson = False) -> None:
    """List all projects with their limits."""
    with open_database() as database, database.reading() as session:
        rows = project_service.list_projects(session)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    for row in rows:
        typer.echo(_describe(row))


@projects.command("set")
def set_limits(
    project: ProjectName,
    *,
    max_stored_bytes: Limit = None,
    max_queued_jobs: Limit = None,
    max_running_jobs: Limit = None,
    max_processor_hours: Limit = None,
    max_duration_s: Limit = None,
    max_requests_per_minute: Limit = None,
    file_retention_days: Limit = None,
    job_retention_days: Limit = None,
    event_retention_days: Limit = None,
) -> None:
    """Change limits of a project. `none` removes a limit: see docs/projects.md."""
    options = {
        "max_stored_bytes": max_stored_bytes,
        "max_queued_jobs": max_queued_jobs,
        "max_running_jobs": max_running_jobs,
        "max_processor_hours": max_processor_hours,
        "max_duration_s": max_duration_s,
        "max_requests_per_minute": max_requests_per_minute,
        "file_retention_days": file_retention_days,
        "job_retention_days": job_retention_days,
        "event_retention_days": event_retention_days,
    }
    changes = _read_limits({name: text for name, text in options.items() if text is not None})
    with open_database() as database:
        changed = _explain(
            lambda: database.transact(
                lambda session: project_service.update_project(
                    session, project, changes, by=None, now=utc_now()
                )
            )
        )
    typer.echo(_describe(changed))


@projects.command("usage")
def show_usage(*, as_json: AsJson = False) -> None:
    """Show what each project stores and runs, and what it has used this month."""
    now = utc_now()
    with open_database() as database, database.reading() as session:
        used = [
            (row, project_service.read_usage(session, row.id, now=now))
            for row in project_service.list_projects(session)
        ]
    if as_json:
        print_json([usage.model_dump(mode="json") for _, usage in used])
        return
    for row, usage in used:
        typer.echo(f"{row.name} ({row.id})  {_describe_usage(usage)}")


@projects.command("erase")
def erase(
    project: ProjectName,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a project with all its rows and all its bytes. There is no way back."""
    if not yes:
        typer.confirm(f"Erase the project {project} and everything that belongs to it?", abort=True)
    settings = read_settings()
    with open_database(settings) as database:
        store = open_store(settings)
        require_right_store(database, store)
        erased = _explain(
            lambda: project_service.erase_project(
                project,
                read=database.read,
                write=database.transact,
                store=store,
                settings=settings,
                by=None,
                now=utc_now(),
            )
        )
    for table, count in erased.rows.items():
        typer.echo(f"{table:20} {count:>12,} rows")
    typer.echo(f"{'files':20} {erased.blobs:>12,} with {erased.bytes / MIB:,.1f} MiB")
    typer.echo(f"{erased.id} is erased.")


def _read_limits(given: dict[str, str]) -> ProjectUpdate:
    numbers = {name: text for name, text in given.items() if text != _NO_LIMIT}
    try:
        changes = ProjectUpdate.model_validate_strings(numbers)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = f"--{problem['loc'][0]}".replace("_", "-")
        raise typer.BadParameter(
            f"{problem['msg']}. Give a number, or {_NO_LIMIT}.", param_hint=name
        ) from error
    return changes.model_copy(update=dict.fromkeys(given.keys() - numbers.keys()))


def _explain(act: Callable[[], T]) -> T:
    try:
        return act()
    except NotFoundError as error:
        raise NoSuchProjectError(f"{error} List them with 'tunery projects list'.") from error


def _describe(row: ProjectRead) -> str:
    limits = row.model_dump(include=set(ProjectUpdate.model_fields), exclude_none=True)
    shown = ", ".join(f"{name}={value:,}" for name, value in limits.items())
    return f"{row.name} ({row.id})  {shown or 'no limits'}"


def _describe_usage(usage: ProjectUsageRead) -> str:
    jobs = ", ".join(f"{count:,} {status}" for status, count in sorted(usage.jobs.items()))
    return (
        f"{usage.stored_bytes / MIB:,.1f} MiB; {jobs or 'no'} jobs; in {usage.month}: "
        f"{usage.processor_seconds / SECONDS_AN_HOUR:,.2f} processor hours, "
        f"{usage.requests:,} requests"
    )
