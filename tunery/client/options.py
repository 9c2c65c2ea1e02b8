"""Options and arguments that several commands have, and how they are completed."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from app.core.errors import OperatorError
from tunery.client.service.api import Api
from tunery.client.service.profile import choose_profile

_COMPLETED_JOBS = 50
"""Jobs that completion offers: the newest, in one answer of the service."""

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON: one document, or one a line for what goes on."),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile", help="Profile that names the service and has the key.", metavar="NAME"
    ),
]

IdempotencyKey = Annotated[
    str,
    typer.Option(help="Key that makes this command safe to repeat: a second one makes no job."),
]


def open_api(profile: str | None) -> Api:
    """Return the API of the service that the option, the environment or the profile names."""
    return Api(choose_profile(profile))


def _complete_job(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield ids of recent jobs, each with what a shell may show beside it; none on an error."""
    with suppress(OperatorError):
        api = Api(choose_profile(None), is_hurried=True)
        for job in api.pages("/fine_tuning/jobs", limit=_COMPLETED_JOBS):
            if job["id"].startswith(incomplete):
                yield job["id"], job["status"]


JobId = Annotated[
    str, typer.Argument(help="Id of the job.", metavar="JOB", autocompletion=_complete_job)
]
JobIds = Annotated[
    list[str],
    typer.Argument(help="Ids of the jobs.", metavar="JOB...", autocompletion=_complete_job),
]
