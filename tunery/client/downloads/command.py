"""`tunery download`: the adapter of a job, checked, and continued where a download broke off."""

import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.core.errors import OperatorError
from tunery.client.downloads.exports import fetch_export
from tunery.client.downloads.fetching import (
    DamagedDownloadError,
    check_report,
    digest_in,
    fetch_part,
    is_safe,
)
from tunery.client.options import AsJson, JobId, ProfileName, open_api
from tunery.client.screen.terminal import escape, print_json
from tunery.client.service.api import Api, Json, job_path


def download(
    job: JobId,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, JOB.zip, JOB.gguf or JOB-merged.zip by default. With --unpack a "
            "directory, JOB or JOB-merged by default.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Step or id of a checkpoint. Default: the result of the job."),
    ] = None,
    variant: Annotated[
        Literal["peft", "gguf", "merged"],
        typer.Option(
            "--format",
            help="peft for the adapter as it was trained, gguf for llama.cpp, merged for the whole "
            "model.",
        ),
    ] = "peft",
    unpack: Annotated[
        bool, typer.Option("--unpack", help="Write the files of the archive, not the archive.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Download the adapter of a job. A download that broke off is continued.

    The service makes gguf and merged first, which takes seconds to hours.
    """
    api = open_api(profile)
    if variant == "peft":
        target = output or Path(job if unpack else f"{job}.zip")
        written = fetch_adapter(api, job, target, checkpoint=checkpoint, unpack=unpack)
    else:
        written = fetch_export(
            api, job, output, checkpoint=checkpoint, variant=variant, unpack=unpack
        )
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(escape(str(path)))


def fetch_adapter(
    api: Api, job_id: str, target: Path, *, checkpoint: str | None = None, unpack: bool
) -> list[Path]:
    """Download an adapter, check every file of it, and return the paths of what was written.

    Args:
        api: the service.
        job_id: id of the job.
        target: the archive, or with `unpack` the directory, to write.
        checkpoint: step or id of a checkpoint; by default, the result of the job.
        unpack: whether to write the files of the archive instead of it.
    """
    row = _find_checkpoint(api, job_id, checkpoint)
    digests = {
        file["filename"]: file["sha256"]
        for file in api.pages("/files", purpose="fine-tune-results", checkpoint=row["id"])
    }
    archive = target.with_name(f"{target.name}.zip") if unpack else target
    part = fetch_part(
        api,
        job_path(job_id, "adapter"),
        archive,
        check=lambda path: _check_archive(path, digests),
        params={"checkpoint": row["id"]},
    )
    if not unpack:
        part.replace(archive)
        return [archive]
    # The part is unpacked and not the archive: a file with the archive's name is the user's.
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(part) as opened:
        paths = [Path(opened.extract(name, target)) for name in opened.namelist()]
    part.unlink()
    return paths


def _find_checkpoint(api: Api, job_id: str, checkpoint: str | None) -> Json:
    for row in api.pages(job_path(job_id, "checkpoints")):
        if row["is_result"] if checkpoint is None else _is_named(row, checkpoint):
            return row
    job = api.get(job_path(job_id))
    if checkpoint is not None:
        raise OperatorError(f"{job_id} has no checkpoint {escape(checkpoint)}.")
    raise OperatorError(
        f"{job_id} has no result, because it is {job['status']}. To download a checkpoint, give "
        "its step with --checkpoint."
    )


def _is_named(row: Json, checkpoint: str) -> bool:
    return checkpoint in {row["id"], str(row["step_number"])}


def _check_archive(archive: Path, digests: dict[str, str]) -> None:
    """Compare the files of an archive with what the service says of them."""
    found: dict[str, str] = {}
    with suppress(zipfile.BadZipFile, EOFError), zipfile.ZipFile(archive) as opened:
        found = {name: digest_in(opened, name) for name in opened.namelist()}
    check_report(archive, found)
    if found != digests or not all(map(is_safe, found)):
        raise DamagedDownloadError.of(archive.stem)
