"""`tunery sweeps`: jobs that differ in some hyperparameters, by their validation loss."""

from typing import Annotated, cast

import typer

from app.core.command_line.exit_codes import CommandGroup
from tunery.client.options import AsJson, ProfileName, open_api
from tunery.client.screen.terminal import age, number, print_json, print_table, say
from tunery.client.service.api import Json, checked_id, new_idempotency_key
from tunery.client.submit import JobFilePath, upload_files

_PATH = "/fine_tuning/sweeps"
_DEFAULT_LIMIT, _MAX_LIMIT = 20, 100

sweeps = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, help="Compare jobs that differ in hyperparameters."
)

SweepId = Annotated[str, typer.Argument(help="Id of the sweep.", metavar="SWEEP")]


@sweeps.command()
def create(
    file: JobFilePath,
    *,
    idempotency_key: Annotated[
        str,
        typer.Option(help="Key that makes this command safe to repeat: a second one makes no job."),
    ] = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Create the jobs of a job file with `sweep:`. Prints the id of the sweep."""
    api = open_api(profile)
    request = upload_files(api, file, is_sweep=True)
    sweep = api.post(_PATH, request, idempotency_key=idempotency_key or new_idempotency_key())
    if as_json:
        print_json(sweep)
        return
    typer.echo(sweep["id"])
    say(f"{len(sweep['points'])} jobs. To compare them: tunery sweeps show {sweep['id']}")


@sweeps.command("list")
def list_sweeps(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=_MAX_LIMIT)] = _DEFAULT_LIMIT,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List sweeps, newest first, each with its best job so far."""
    rows = [*open_api(profile).pages(_PATH, limit=limit)]
    if as_json:
        print_json(rows)
        return
    headings = ("SWEEP", "STATUS", "JOBS", "AGE", "LOSS", "BEST")
    print_table(headings, [_summary(each) for each in rows])


@sweeps.command()
def show(sweep: SweepId, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Show the jobs of a sweep, the lowest validation loss first."""
    found = open_api(profile).get(f"{_PATH}/{checked_id(sweep)}")
    if as_json:
        print_json(found)
    else:
        _print(found)


@sweeps.command()
def cancel(sweep: SweepId, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Cancel all jobs of a sweep that have not ended."""
    cancelled = open_api(profile).post(f"{_PATH}/{checked_id(sweep)}/cancel")
    if as_json:
        print_json(cancelled)
    else:
        _print(cancelled)


def _summary(sweep: Json) -> tuple[object, ...]:
    best = cast("Json | None", sweep["best"])
    return (
        sweep["id"],
        sweep["status"].removesuffix("_files"),
        len(sweep["points"]),
        age(sweep["created_at"]),
        best and number(best["result_valid_loss"]),
        best and _tell(best["hyperparameters"]),
    )


def _tell(hyperparameters: Json) -> str:
    return ", ".join(f"{name}={_cell(value)}" for name, value in hyperparameters.items())


def _print(sweep: Json) -> None:
    points = cast("list[Json]", sweep["points"])
    names = [*dict.fromkeys(name for point in points for name in point["hyperparameters"])]
    print_table(
        ("JOB", *names, "STATUS", "STEPS", "LOSS"),
        [
            (
                point["job_id"],
                *(_cell(point["hyperparameters"].get(name)) for name in names),
                point["status"].removesuffix("_files"),
                f"{point['trained_steps']}/{point['total_steps'] or '?'}",
                _loss(point),
            )
            for point in points
        ],
    )
    if sweep["best"] is not None:
        say(f"Best: {sweep['best']['fine_tuned_model']}")


def _loss(point: Json) -> str:
    """Validation loss of the result, or the last one so far, in brackets."""
    if point["result_valid_loss"] is not None:
        return number(point["result_valid_loss"])
    return f"({number(point['valid_loss'])})" if point["valid_loss"] is not None else ""


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, cast("list[object]", value)))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
