"""The commands that follow a job: `tunery watch` and `tunery logs`."""

from typing import Annotated

import typer

from tunery.client.options import AsJson, JobId, ProfileName, open_api
from tunery.client.screen.progress import choose_view, print_event
from tunery.client.screen.terminal import print_json, say
from tunery.client.service.api import Api, Json, job_path
from tunery.client.service.live import follow

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_PAST_EVENTS = 10
"""Past events that are shown above the bar of a job."""


def watch(job: JobId, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Watch a job until it ends. Ctrl-C leaves it running."""
    ended = watch_to_end(open_api(profile), job, as_json=as_json)
    raise typer.Exit(exit_code_of(ended))


def watch_to_end(api: Api, job_id: str, *, as_json: bool) -> Json:
    """Show a job until it ends, and return it.

    Raises:
        typer.Exit: the user has pressed Ctrl-C.
    """
    job: Json = {}
    try:
        with choose_view(as_json=as_json) as view:
            for message in follow(api, job_id, past_events=_PAST_EVENTS, on_break=view.show_break):
                view.show(message)
                job = message.data
    except KeyboardInterrupt:
        say(f"Ctrl-C does not change the job. To watch it again: tunery watch {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    return job


def exit_code_of(job: Json) -> int:
    """0 if the job has succeeded, 1 if it has failed, was cancelled or was deleted."""
    return int(job.get("status") != "succeeded")


def logs(
    job: JobId,
    *,
    keep_on: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", help="Only the newest events.", min=1)
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Print the events of a job, oldest first."""
    api = open_api(profile)
    show = print_json if as_json else print_event
    if not keep_on:
        for event in reversed([*api.pages(job_path(job, "events"), limit=limit)]):
            show(event)
        return
    messages = follow(
        api, job, past_events=limit, on_break=lambda: say("The service does not answer ...")
    )
    for message in messages:
        if message.kind == "event":
            show(message.data)
