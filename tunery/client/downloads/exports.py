"""`tunery download --format`: an adapter for another program, which a worker makes first."""

import hashlib
import json
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.errors import OperatorError
from tunery.client.downloads.fetching import (
    DamagedDownloadError,
    check_report,
    digest_in,
    etag_of,
    fetch_part,
    is_safe,
)
from tunery.client.service.api import Api, Json, job_path
from tunery.client.service.waiting import wait_until_made

if TYPE_CHECKING:
    from app.core.hand_off.formats import ExportFormat

_ACCEPTED = 202
_MANIFEST = "manifest.json"


def fetch_export(
    api: Api,
    job_id: str,
    target: Path | None,
    *,
    checkpoint: str | None,
    variant: "ExportFormat",
    unpack: bool,
) -> list[Path]:
    """Wait for an export, download it, check it, and return the paths of what was written.

    Args:
        api: the service.
        job_id: id of the job.
        target: the file, or with `unpack` the directory, to write. None for a name after the job.
        checkpoint: step or id of a checkpoint; None for the result of the job.
        variant: the format.
        unpack: whether to write the files of the archive instead of it.
    """
    if unpack and variant == "gguf":
        raise OperatorError("A GGUF adapter is one file. Leave out --unpack.")
    ending = ".gguf" if variant == "gguf" else "" if unpack else ".zip"
    target = target or Path(f"{job_id}{'-merged' if variant == 'merged' else ''}{ending}")
    asked = {"checkpoint": checkpoint, "format": variant}
    address = job_path(job_id, "adapter")
    ask = partial(_ask, api, address, asked)
    wait_until_made(ask(), ask, f"the service makes {variant}")
    archive = target.with_name(f"{target.name}.zip") if unpack else target
    check = _check_file if variant == "gguf" else _check_archive
    part = fetch_part(api, address, archive, check=check, params=asked)
    if not unpack:
        part.replace(archive)
        return [archive]
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(part) as opened:
        paths = [Path(opened.extract(name, target)) for name in opened.namelist()]
    part.unlink()
    return paths


def _ask(api: Api, address: str, asked: Json) -> Json:
    """Ask for the export. `retry_after` is None once the service has it."""
    with api.stream(address, headers={"Range": "bytes=0-0"}, **asked) as response:
        if response.status_code != _ACCEPTED:
            return {"retry_after": None}
        return json.loads(response.read())


def _check_file(path: Path) -> None:
    """Compare a file with its ETag, which is its sha256."""
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != etag_of(path):
        raise DamagedDownloadError.of(path.stem)


def _check_archive(path: Path) -> None:
    """Compare an archive with its manifest, whose sha256 is the ETag."""
    try:
        with zipfile.ZipFile(path) as opened:
            manifest = opened.read(_MANIFEST)
            names = [name for name in opened.namelist() if name != _MANIFEST]
            found = {name: digest_in(opened, name) for name in names}
            promised: Json = json.loads(manifest)["files"]
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError):
        raise DamagedDownloadError.of(path.stem) from None
    expected = {name: file["sha256"] for name, file in promised.items()}
    manifest_sha256 = check_report(path, found)
    is_whole = hashlib.sha256(manifest).hexdigest() == manifest_sha256 and found == expected
    if not (is_whole and all(map(is_safe, found))):
        raise DamagedDownloadError.of(path.stem)
