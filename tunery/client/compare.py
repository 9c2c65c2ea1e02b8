"""`tunery compare`: what jobs were told, and what became of them, side by side."""

from typing import Annotated, cast

import typer

from tunery.client.jobs import name_model
from tunery.client.options import AsJson, JobIds, ProfileName, open_api
from tunery.client.screen.terminal import listed, number, print_json, print_table
from tunery.client.service.api import Json, job_path

_MOST_JOBS = 8
"""More columns are not read in a terminal."""

_SETTINGS = (
    "model",
    "training_file",
    "validation_file",
    "seed",
    "recipe",
    "priority",
    "user_provided_suffix",
)
_RESULTS = ("status", "trained_steps", "train_loss", "valid_loss", "tokens_per_second")


def compare(
    jobs: JobIds,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Show the settings that do not differ, too.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show the settings in which jobs differ, then their losses."""
    if len(jobs) > _MOST_JOBS:
        raise typer.BadParameter(f"Compare at most {_MOST_JOBS} jobs.", param_hint="JOB")
    api = open_api(profile)
    rows = [api.get(job_path(job_id)) for job_id in jobs]
    told = [_settings_of(job) for job in rows]
    names = [name for name in _names(told) if every or _differs(name, told)]
    if as_json:
        print_json(
            {
                "jobs": [job["id"] for job in rows],
                "settings": {name: [each.get(name) for each in told] for name in names},
                "results": {name: [job[name] for job in rows] for name in _RESULTS},
            }
        )
        return
    settings = [(name, *(_cell(each.get(name)) for each in told)) for name in names]
    results = [(name, *(_cell(job[name]) for job in rows)) for name in _RESULTS]
    places = [str(place) for place in range(1, len(rows) + 1)]
    told_apart = [
        (place, job["id"], name_model(job)) for place, job in zip(places, rows, strict=True)
    ]
    print_table(("", "JOB", "MODEL"), told_apart)
    typer.echo()
    print_table(("", *places), [*settings, *results])


def _settings_of(job: Json) -> Json:
    labels: Json = job["metadata"] or {}
    return (
        {name: job[name] for name in _SETTINGS}
        | {f"metadata.{name}": value for name, value in labels.items()}
        | job["hyperparameters"]
    )


def _names(told: list[Json]) -> list[str]:
    """The names of all settings, each once, in the order of the service."""
    return [*dict.fromkeys(name for each in told for name in each)]


def _differs(name: str, told: list[Json]) -> bool:
    return any(each.get(name) != told[0].get(name) for each in told)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return number(value)
        case list():
            return listed(cast("list[object]", value))
        case _:
            return str(value)
