"""`tunery download`: the adapter of a job, checked, and continued where a download broke off."""

import hashlib
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from app.core.errors import OperatorError
from tunery.client.options import AsJson, JobId, ProfileName, open_api
from tunery.client.screen.terminal import escape, print_json, say, transfer
from tunery.client.service.api import Api, AwayError, Json, checked_id, job_path

_CHUNK = 1 << 20
_TRIES = 5
"""Times that a download is continued after its connection broke, before the command ends."""

_PARTIAL_CONTENT = 206


class DamagedDownloadError(OperatorError):
    """What has arrived is not what the service has."""


def download(
    job: JobId,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, JOB.zip by default. With --unpack a directory, JOB by default.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Step or id of a checkpoint. Default: the result of the job."),
    ] = None,
    unpack: Annotated[
        bool, typer.Option("--unpack", help="Write the files of the adapter, not an archive.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Download the adapter of a job. A download that broke off is continued."""
    api = open_api(profile)
    target = output or Path(job if unpack else f"{job}.zip")
    written = fetch_adapter(api, job, target, checkpoint=checkpoint, unpack=unpack)
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
    address = job_path(job_id, "adapter")
    part = _fetch_part(
        api, address, archive, check=lambda path: _check_archive(path, digests), step=row["id"]
    )
    if not unpack:
        part.replace(archive)
        return [archive]
    # The part is unpacked and not the archive: a file with the archive's name is the user's.
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(part) as opened:
        paths = [Path(opened.extract(name, target)) for name in digests]
    part.unlink()
    return paths


def fetch_file(api: Api, file_id: str, target: Path) -> Path:
    """Download a file of the service and check it."""
    address = f"/files/{checked_id(file_id)}"
    expected = api.get(address)["sha256"]

    def check(path: Path) -> None:
        with path.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                raise DamagedDownloadError(_describe_damage(target.name))

    _fetch_part(api, f"{address}/content", target, check=check).replace(target)
    return target


def _fetch_part(
    api: Api, address: str, target: Path, *, check: Callable[[Path], None], step: str | None = None
) -> Path:
    """Download something to `NAME.part`, check it, and return that path.

    After a failure, the bytes stay there, where the next try or the next command finds them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for left in reversed(range(_TRIES)):
        try:
            _fetch_rest(api, address, part, step)
            break
        except AwayError:
            if not left or not part.exists():
                raise
            say("The connection broke. The download is continued ...")
    try:
        check(part)
    except DamagedDownloadError:
        part.unlink()
        raise
    _etag_of(part).unlink()
    return part


def _fetch_rest(api: Api, address: str, part: Path, step: str | None) -> None:
    headers = {"Accept": "*/*"}
    known = _etag_of(part)
    begin = 0
    if part.exists() and known.exists():
        # The last byte is asked for again: a range that begins behind the end would be refused.
        begin = max(0, part.stat().st_size - 1)
        headers["Range"] = f"bytes={begin}-"
        headers["If-Range"] = known.read_text("utf-8")
    with api.stream(address, headers=headers, checkpoint=step) as response:
        is_rest = response.status_code == _PARTIAL_CONTENT
        with part.open("r+b" if is_rest else "wb") as file:
            file.seek(begin if is_rest else 0)
            known.write_text(response.headers.get("etag", ""), "utf-8")
            total = file.tell() + int(response.headers.get("content-length", 0))
            with transfer(part.stem, total) as show:
                for chunk in response.iter_bytes(_CHUNK):
                    file.write(chunk)
                    show(file.tell())


def _etag_of(part: Path) -> Path:
    """The file that says of which version the bytes in `part` are."""
    return part.with_name(f"{part.name}.etag")


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
        found = {name: _digest_in(opened, name) for name in opened.namelist()}
    is_safe = all(re.fullmatch(r"[\w.-]*\w", name, re.ASCII) for name in found)
    if found != digests or not is_safe:
        raise DamagedDownloadError(_describe_damage(archive.stem))


def _describe_damage(name: str) -> str:
    return f"{escape(name)} is not what the service has. Run the command again."


def _digest_in(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as content:
        digest = hashlib.sha256()
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest()
