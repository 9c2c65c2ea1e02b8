"""`tunery sweeps`: jobs that differ in some hyperparameters, by their validation loss."""

from typing import Annotated, cast

import typer

from app.core.command_line.exit_codes import CommandGroup
from tunery.client.options import AsJson, IdempotencyKey, ProfileName, open_api
from tunery.client.screen.terminal import age, listed, number, print_json, print_table, say, size
from tunery.client.service.api import Json, checked_id, new_idempotency_key
from tunery.client.submit import JobFilePath, describe_duration, upload_files

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
    idempotency_key: IdempotencyKey = "",
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


@sweeps.command()
def estimate(file: JobFilePath, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Estimate what the jobs of a sweep will take, without creating them. Files are uploaded."""
    api = open_api(profile)
    request = upload_files(api, file, is_sweep=True)
    answer = api.post(f"{_PATH}/estimate", request)
    if as_json:
        print_json(answer)
        return
    jobs = cast("list[Json]", answer["jobs"])
    grid = cast("Json | None", request["sweep"].get("grid"))
    names = dict.fromkeys(
        name for point in ([grid] if grid else request["sweep"]["list"]) for name in point
    )
    rows = [
        (
            *(_cell(job["hyperparameters"].get(name)) for name in names),
            f"{job['estimate']['steps']:,}",
            describe_duration(job["estimate"]["duration"]),
            size(job["estimate"]["peak_memory_bytes"]),
        )
        for job in jobs
    ]
    print_table((*names, "STEPS", "DURATION", "MEMORY"), rows)
    total = describe_duration(answer["duration"])
    say(f"{len(jobs)} jobs, one after another on one worker: {total or 'unknown on a GPU'}")
    for sentence in dict.fromkeys(each for job in jobs for each in job["estimate"]["advice"]):
        say(sentence)


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
    _print(open_api(profile).get(f"{_PATH}/{checked_id(sweep)}"), as_json=as_json)


@sweeps.command()
def cancel(sweep: SweepId, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Cancel all jobs of a sweep that have not ended."""
    _print(open_api(profile).post(f"{_PATH}/{checked_id(sweep)}/cancel"), as_json=as_json)


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


def _print(sweep: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(sweep)
        return
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
        return listed(cast("list[object]", value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
