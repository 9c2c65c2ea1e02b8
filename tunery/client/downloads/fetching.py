"""Downloads that are checked, and continued where they broke off."""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from app.core.errors import OperatorError
from tunery.client.screen.terminal import escape, say, transfer
from tunery.client.service.api import Api, AwayError, checked_id

_CHUNK = 1 << 20
_TRIES = 5
"""Times that a download is continued after its connection broke, before the command ends."""

_PARTIAL_CONTENT = 206
_REPORT = "report.md"
_REPORT_DIGITS = 16
"""Digits of the report's sha256 in the ETag."""


class DamagedDownloadError(OperatorError):
    """What has arrived is not what the service has."""

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"{escape(name)} is not what the service has. Run the command again.")


def fetch_file(api: Api, file_id: str, target: Path) -> Path:
    """Download a file of the service and check it."""
    address = f"/files/{checked_id(file_id)}"
    expected = api.get(address)["sha256"]

    def check(path: Path) -> None:
        with path.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                raise DamagedDownloadError.of(target.name)

    fetch_part(api, f"{address}/content", target, check=check).replace(target)
    return target


def fetch_part(
    api: Api,
    address: str,
    target: Path,
    *,
    check: Callable[[Path], None],
    params: Mapping[str, object] | None = None,
) -> Path:
    """Download something to `NAME.part`, check it, and return that path.

    After a failure, the bytes stay there, where the next try or the next command finds them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    for left in reversed(range(_TRIES)):
        try:
            _fetch_rest(api, address, part, params or {})
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
    _etag_file_of(part).unlink()
    return part


def _fetch_rest(api: Api, address: str, part: Path, params: Mapping[str, object]) -> None:
    headers = {"Accept": "*/*"}
    known = _etag_file_of(part)
    begin = 0
    if part.exists() and known.exists():
        # The last byte is asked for again: a range that begins behind the end would be refused.
        begin = max(0, part.stat().st_size - 1)
        headers["Range"] = f"bytes={begin}-"
        headers["If-Range"] = known.read_text("utf-8")
    with api.stream(address, headers=headers, body=None, **params) as response:
        is_rest = response.status_code == _PARTIAL_CONTENT
        with part.open("r+b" if is_rest else "wb") as file:
            file.seek(begin if is_rest else 0)
            known.write_text(response.headers.get("etag", ""), "utf-8")
            total = file.tell() + int(response.headers.get("content-length", 0))
            with transfer(part.stem, total) as show:
                for chunk in response.iter_bytes(_CHUNK):
                    file.write(chunk)
                    show(file.tell())


def etag_of(part: Path) -> str:
    """The ETag of the bytes in `part`, without its quotes. For the check of `fetch_part`."""
    return _etag_file_of(part).read_text("utf-8").strip('"')


def check_report(part: Path, digests: dict[str, str]) -> str:
    """Check the report in an archive, which no manifest lists, and take it out of `digests`.

    The ETag is the sha256 of the manifest, followed by the beginning of that of the report if there
    is one.

    Args:
        part: the archive.
        digests: the sha256 of each of its files.

    Returns:
        The sha256 of the manifest, as the ETag has it.
    """
    manifest_sha256, _, report_sha256 = etag_of(part).partition("-")
    found = digests.pop(_REPORT, "")
    if found[:_REPORT_DIGITS] != report_sha256:
        raise DamagedDownloadError.of(part.stem)
    return manifest_sha256


def _etag_file_of(part: Path) -> Path:
    """The file that says of which version the bytes in `part` are."""
    return part.with_name(f"{part.name}.etag")


def is_safe(name: str) -> bool:
    """Whether a name in an archive names a file and no directory."""
    return re.fullmatch(r"[\w.-]*\w", name, re.ASCII) is not None


def digest_in(archive: zipfile.ZipFile, name: str) -> str:
    """The sha256 of a file in an archive."""
    with archive.open(name) as content:
        digest = hashlib.sha256()
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest()
