"""`tunery submit` and `tunery estimate`: from a job file to a job, and to its adapter."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Annotated, Any

import typer

from tunery.client.downloads.command import fetch_adapter
from tunery.client.downloads.fetching import fetch_file
from tunery.client.options import AsJson, IdempotencyKey, ProfileName, open_api
from tunery.client.screen.terminal import (
    duration,
    escape,
    print_json,
    print_table,
    say,
    size,
    transfer,
)
from tunery.client.service.api import Api, Json, new_idempotency_key
from tunery.client.watch import INTERRUPTED, exit_code_of, watch_to_end

_RECENT_FILES = 1000
"""Files of the service that are compared with one that is to be uploaded: the newest."""

JobFilePath = Annotated[
    Path, typer.Argument(help="YAML file that describes the job.", metavar="FILE")
]


def submit(
    file: JobFilePath,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Watch the job, then download its adapter.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="With --follow: directory to write. Default: the id of the job."
        ),
    ] = None,
    idempotency_key: IdempotencyKey = "",
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Upload the files of a job and create it. Prints the id of the job."""
    api = open_api(profile)
    try:
        request = upload_files(api, file)
    except KeyboardInterrupt:
        say("Interrupted while files were uploaded. No job was created.")
        raise typer.Exit(INTERRUPTED) from None
    key = idempotency_key or new_idempotency_key()
    job = api.post("/fine_tuning/jobs", request, idempotency_key=key)
    if as_json:
        print_json(job if not follow else {"event": "created", "data": job})
    else:
        typer.echo(job["id"])
    if not follow:
        say(f"To watch it: tunery watch {job['id']}")
        return
    ended = watch_to_end(api, job["id"], as_json=as_json)
    if exit_code_of(ended):
        raise typer.Exit(1)
    _download(api, ended, output or Path(job["id"]), as_json=as_json)


def estimate(file: JobFilePath, *, as_json: AsJson = False, profile: ProfileName = None) -> None:
    """Estimate what a job will take, without creating it. Its files are uploaded."""
    api = open_api(profile)
    answer = api.post("/fine_tuning/jobs/estimate", upload_files(api, file))
    if as_json:
        print_json(answer)
        return
    found: Json = answer["estimate"]
    print_table(
        ("ESTIMATE", answer["model"]),
        [
            ("steps", f"{found['steps']:,}"),
            ("tokens", f"{found['tokens']:,}"),
            ("duration", describe_duration(found["duration"])),
            ("memory", size(found["peak_memory_bytes"])),
            ("memory at least", size(found["least_memory_bytes"])),
            ("disk", size(found["disk_bytes"])),
        ],
    )
    for sentence in found["advice"]:
        say(sentence)


def upload_once(api: Api, path: Path) -> tuple[Json, bool]:
    """Upload a dataset, unless the service has it under the same name.

    Returns:
        The file, and whether it was there before.
    """
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    for file in api.pages("/files", purpose="fine-tune", limit=_RECENT_FILES):
        is_same = file["sha256"] == digest and file["filename"] == path.name
        if is_same and file["expires_at"] is None:
            return file, True
    with open_shown(path) as shown:
        return api.upload(path.name, shown), False


@contextmanager
def open_shown(path: Path) -> Generator[BufferedReader]:
    """Open a file to be sent, and show how much of it was read."""
    with transfer(path.name, path.stat().st_size) as show, _ShownFile(path) as raw:
        raw.show = show
        yield BufferedReader(raw)


class _ShownFile(FileIO):
    """A file that shows how much of it was read."""

    show: Any = None

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        if self.show is not None:
            self.show(self.tell())
        return count


def upload_files(api: Api, file: Path, *, is_sweep: bool = False) -> Json:
    """Upload the datasets that a job file names by path. Returns the body of the request."""
    from app.schemas.fine_tuning_jobs import JobCreate  # noqa: PLC0415 - imports every schema
    from app.schemas.sweeps import SweepCreate  # noqa: PLC0415
    from tunery.client.job_file import read_job_file  # noqa: PLC0415

    job_file = read_job_file(file, SweepCreate if is_sweep else JobCreate)
    request: Json = dict(job_file.content)
    for field, path in job_file.uploads.items():
        uploaded, was_there = upload_once(api, path)
        request[field] = uploaded["id"]
        say(f"{path}: {'already there' if was_there else 'uploaded'}, {uploaded['id']}")
    return request


def _download(api: Api, job: Json, directory: Path, *, as_json: bool) -> None:
    paths = fetch_adapter(api, job["id"], directory / "adapter", unpack=True)
    paths += [fetch_file(api, each, directory / "loss.csv") for each in job["result_files"]]
    if as_json:
        print_json({"event": "downloaded", "data": {"files": [str(path) for path in paths]}})
    else:
        typer.echo(escape(f"{directory}: the adapter is in adapter/, the loss log is loss.csv"))


def describe_duration(took: Json | None) -> str | None:
    """A duration of an estimate. None if it is not known: on a GPU."""
    if took is None:
        return None
    low, high = duration(took["low"]), duration(took["high"])
    return f"{duration(took['seconds'])} ({low} to {high})"
