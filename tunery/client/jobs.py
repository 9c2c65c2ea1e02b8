"""`tunery jobs`, and the commands that change a job."""

import uuid
from typing import Annotated

import typer

from tunery.client.options import AsJson, JobId, JobIds, ProfileName, open_api
from tunery.client.screen.progress import describe_waiting
from tunery.client.screen.terminal import age, number, print_json, print_table, say
from tunery.client.service.api import Json, job_path

_DEFAULT_LIMIT = 20


def list_jobs(
    *,
    status: Annotated[
        str | None,
        typer.Option(help="Only jobs with one of these statuses.", metavar="STATUS,..."),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(help="Only jobs with this text in id, model, suffix or a label."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Only jobs with this label; can be repeated.", metavar="KEY=VALUE"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = _DEFAULT_LIMIT,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """List jobs, newest first."""
    labels = dict(_read_label(each) for each in label or [])
    rows = [
        *open_api(profile).pages(
            "/fine_tuning/jobs", limit=limit, status=status, search=search, metadata=labels or None
        )
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("JOB", "STATUS", "DONE", "LOSS", "AGE", "MODEL"),
        [
            (
                job["id"],
                job["status"].removesuffix("_files"),
                f"{job['progress']:.0%}",
                number(job["train_loss"]),
                age(job["created_at"]),
                name_model(job),
            )
            for job in rows
        ],
    )
    for job in rows:
        if job["waiting_reason"] and job["status"] != "paused":
            say(f"{job['id']}: {describe_waiting(job)}")


def pause(jobs: JobIds, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Pause jobs. A running job saves its state first."""
    _change(jobs, "pause", as_json=as_json, profile=profile)


def resume(
    jobs: JobIds,
    *,
    is_inexact: Annotated[
        bool,
        typer.Option(
            "--inexact",
            help="Let jobs go on inexactly, also those that are not paused, if no running worker "
            "can go on exactly.",
        ),
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Put paused jobs back into the queue."""
    body: Json | None = {"allow_inexact_resume": True} if is_inexact else None
    _change(jobs, "resume", body, as_json=as_json, profile=profile)


def cancel(jobs: JobIds, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Cancel jobs. Their checkpoints and loss logs stay."""
    _change(jobs, "cancel", as_json=as_json, profile=profile)


def rerun(
    job: JobId,
    *,
    from_saved_state: Annotated[
        bool,
        typer.Option(
            "--from-saved-state", help="Continue where the job stopped, not with its first step."
        ),
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Create a job with the files and settings of another one. Prints the id of the new job."""
    body: Json = {"from": "saved_state"} if from_saved_state else {}
    key = f"tunery-{uuid.uuid4()}"
    new = open_api(profile).post(job_path(job, "rerun"), body, idempotency_key=key)
    if as_json:
        print_json(new)
        return
    typer.echo(new["id"])
    say(f"To watch it: tunery watch {new['id']}")


def _change(
    jobs: list[str], verb: str, body: Json | None = None, *, as_json: bool, profile: str | None
) -> None:
    """Ask for the change of each job. The first that is refused ends the command."""
    api = open_api(profile)
    changed: list[Json] = []
    for job_id in jobs:
        changed.append(api.post(job_path(job_id, verb), body))
        if not as_json:
            typer.echo(f"{job_id}: {_describe_change(changed[-1])}")
    if as_json:
        print_json(changed)


def _describe_change(job: Json) -> str:
    if job["cancel_requested_at"] and job["status"] == "running":
        return "running, and will be cancelled within seconds"
    if job["pause_requested_at"]:
        return f"{job['status']}, and will be paused"
    return job["status"]


def name_model(job: Json) -> str:
    """The base model of a job, with the suffix of the model that is made of it."""
    suffix = job["user_provided_suffix"]
    return f"{job['model']} ({suffix})" if suffix else job["model"]


def _read_label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--label")
    return key, value
