"""Download one file from a model hub: resumable, and checked before it gets its name.

`huggingface_hub` itself drops a half-finished file when its process ends; its `http_get`, which
continues from a given byte, is what can be resumed.
"""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import (
    http_get,  # pyright: ignore[reportUnknownVariableType]  # a tqdm without type arguments
)
from huggingface_hub.utils import (
    build_hf_headers,  # pyright: ignore[reportUnknownVariableType]  # a dict without them
)

from app.core.manifest import sha256_of
from worker.model_store.errors import InstallError

logger = logging.getLogger(__name__)

# Otherwise every request says which programs run here, and there is one more that asks for a list
# of agents to look for. As HF_HUB_DISABLE_TELEMETRY=1 does, which is read before this module is.
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub lists it."""

    name: str
    size: int
    """Size in bytes."""

    git_sha1: str
    """SHA-1 of the git object: the file, or the pointer to it if there is a sha256."""

    sha256: str | None
    """SHA-256 of a large file. None for a small one."""


def download(file: HubFile, url: str, *, job_directory: Path, files_dir: Path) -> None:
    """Fetch a file into `files_dir`, unless it is there. A file that is there was checked.

    Args:
        job_directory: where an unfinished file waits to be continued.

    Raises:
        InstallError: the file is not the one that the hub lists.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses.
        httpx2.TransportError: the hub cannot be reached.
    """
    target = files_dir / file.name
    if target.exists():
        return
    unfinished = job_directory / f"{file.name}.incomplete"
    was_begun = unfinished.exists()
    _transfer(file, url, unfinished)
    if was_begun and not _is_intact(unfinished, file):
        # After a power cut, a file may have its length and not its bytes.
        logger.warning("%s: the part on the disk is damaged; fetching it again", file.name)
        unfinished.unlink()
        _transfer(file, url, unfinished)
    if not _is_intact(unfinished, file):
        unfinished.unlink()
        raise InstallError(
            f"{file.name} is not the file that the hub lists: its checksum differs. It was "
            "deleted. Try again; if it happens again, do not trust the proxy or mirror."
        )
    unfinished.rename(target)


def _transfer(file: HubFile, url: str, unfinished: Path) -> None:
    with unfinished.open("ab") as sink:
        begun_bytes = sink.tell()
        if begun_bytes < file.size:
            if begun_bytes:
                logger.info("%s: continuing after %.1f MB", file.name, begun_bytes / 1e6)
            elif file.sha256 is not None:
                logger.info("%s: fetching %.1f MB", file.name, file.size / 1e6)
            http_get(
                url,
                sink,
                resume_size=begun_bytes,
                # Compressed bytes could not be continued from a position in the file.
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                displayed_filename=file.name,
            )
        sink.flush()
        os.fsync(sink.fileno())


def _is_intact(path: Path, file: HubFile) -> bool:
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    content = path.read_bytes()
    as_git_stores_it = b"blob %d\0" % len(content) + content
    sha1 = hashlib.sha1(as_git_stores_it, usedforsecurity=False)
    return sha1.hexdigest() == file.git_sha1
