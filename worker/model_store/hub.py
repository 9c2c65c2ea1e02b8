"""Takes a base model from a model hub, at one commit.

Each file can be resumed, and is checked before it gets its name. `huggingface_hub` itself drops an
unfinished file when its process ends, but its `http_get` continues from a given byte.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2  # huggingface_hub does not wrap its errors when the hub cannot be reached
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import (
    http_get,  # pyright: ignore[reportUnknownVariableType]  # a tqdm without type arguments
)
from huggingface_hub.utils import (
    build_hf_headers,  # pyright: ignore[reportUnknownVariableType]  # a dict without them
)

from app.core.base_models import HubSource
from app.core.manifest import sha256_of
from worker.model_store.checks import find_weight_files
from worker.model_store.configs import check_configs
from worker.model_store.errors import InstallError
from worker.model_store.files import check_size, is_wanted

logger = logging.getLogger(__name__)

# Without this, every request tells the hub which programs run here, and an extra request asks for a
# list of programs to look for. HF_HUB_DISABLE_TELEMETRY=1 does the same, but is read too early.
constants.HF_HUB_DISABLE_TELEMETRY = True

_API_TIMEOUT_S = 30.0
_SPARE_BYTES = 256 * 1024 * 1024
"""Space on the disk that an installation leaves free, in bytes."""


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


def fetch_from_hub(
    source: HubSource,
    *,
    model_id: str,
    job_directory: Path,
    files_dir: Path,
    endpoint: str | None = None,
) -> str:
    """Download the files of a model into `files_dir` and return the commit they are from.

    After an interrupted call, the next one keeps whole files, continues an unfinished file, and
    takes the same commit of the default branch.

    Args:
        model_id: id of the model in the catalogue, for messages.
        job_directory: directory of the files that a later call needs to continue.
        endpoint: address of the hub; by default HF_ENDPOINT, or huggingface.co.

    Raises:
        InstallError: the hub cannot be reached, refuses, or serves other files than it lists.
    """
    with _in_plain_words(source.repo, model_id, endpoint or constants.ENDPOINT):
        commit, listing = _list_files(source, job_directory, files_dir, endpoint)

        def fetch(files: Iterable[HubFile]) -> None:
            for file in files:
                url = hf_hub_url(source.repo, file.name, revision=commit, endpoint=endpoint)
                _download(file, url, job_directory=job_directory, files_dir=files_dir)

        wanted = [file for file in listing.values() if is_wanted(file.name)]
        for file in wanted:
            check_size(file.name, file.size)
        fetch(wanted)
        check_configs(files_dir)  # before gigabytes are downloaded for nothing
        weights = [listing[name] for name in find_weight_files(files_dir, listing)]
        _check_space(weights, job_directory, files_dir)
        fetch(weights)
    return commit


def _list_files(
    source: HubSource, job_directory: Path, files_dir: Path, endpoint: str | None
) -> tuple[str, dict[str, HubFile]]:
    """The commit, and its files that have a checksum, by name."""
    record = job_directory / "commit"  # `REPO COMMIT` of the files that are there
    earlier = record.read_text("utf-8").split() if record.exists() else []
    revision = source.revision or (earlier[1] if earlier[:1] == [source.repo] else None)
    info = HfApi(endpoint=endpoint).model_info(
        source.repo, revision=revision, files_metadata=True, timeout=_API_TIMEOUT_S
    )
    commit = info.sha
    if commit is None or revision not in (None, commit):
        raise InstallError(
            f"The hub answered with the commit {commit} when asked for {revision}. Correct "
            "`revision` in base_models.toml, or HF_ENDPOINT."
        )
    if earlier != [source.repo, commit]:
        shutil.rmtree(job_directory)  # the files of two commits must not mix
        files_dir.mkdir(parents=True)
        record.write_text(f"{source.repo} {commit}", "utf-8")
    return commit, {
        sibling.rfilename: HubFile(
            name=sibling.rfilename,
            size=sibling.size,
            git_sha1=sibling.blob_id,
            sha256=None if sibling.lfs is None else sibling.lfs.sha256,
        )
        for sibling in info.siblings or ()
        if sibling.size is not None and sibling.blob_id is not None
    }


def _check_space(files: Iterable[HubFile], job_directory: Path, files_dir: Path) -> None:
    paths = (*job_directory.iterdir(), *files_dir.iterdir())
    fetched = sum(path.stat().st_size for path in paths)
    needed = sum(file.size for file in files) - fetched + _SPARE_BYTES
    free = shutil.disk_usage(job_directory).free
    if needed > free:
        raise InstallError(
            f"It needs {needed / 1e9:.1f} GB more on the disk of {job_directory}, which has "
            f"{free / 1e9:.1f} GB left. Make room, then try again."
        )


@contextmanager
def _in_plain_words(repo: str, model_id: str, endpoint: str) -> Generator[None]:
    """Say what went wrong at the hub, and what to do about it."""
    try:
        yield
    except GatedRepoError as error:
        raise InstallError(
            f"{repo} is gated: accept its licence at {endpoint}/{repo}, then set HF_TOKEN to an "
            "access token of the same account."
        ) from error
    except RepositoryNotFoundError as error:
        raise InstallError(
            f"{endpoint} has no model {repo}, or it is private. Correct `repo` in "
            "base_models.toml, or set HF_TOKEN to an access token that may read it."
        ) from error
    except RevisionNotFoundError as error:
        raise InstallError(
            f"{repo} no longer has the requested commit. Correct `revision` in base_models.toml, "
            f"or, if it has none, run `tunery models remove {model_id}` to start over from "
            "the newest commit."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "HF_TOKEN is not valid." if status == 401 else "Try again later."  # noqa: PLR2004
        raise InstallError(f"{endpoint} answered with status {status}. {hint}") from error
    except OfflineModeIsEnabled as error:
        raise InstallError(
            "HF_HUB_OFFLINE is set, so nothing can be downloaded. Unset it."
        ) from error
    except httpx2.TransportError as error:
        raise InstallError(
            f"{endpoint} cannot be reached ({error}). Check the network, the proxy and "
            "HF_ENDPOINT, then try again: the download continues where it stopped."
        ) from error


def _download(file: HubFile, url: str, *, job_directory: Path, files_dir: Path) -> None:
    """Fetch a file into `files_dir`, unless it is there. A file that is there was checked.

    Args:
        file: the file, as the hub lists it.
        url: address of the file.
        job_directory: directory of the unfinished file, which a later call continues.
        files_dir: directory of the complete files.

    Raises:
        InstallError: the file is not the one that the hub lists.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses.
        httpx2.TransportError: the hub cannot be reached.
    """
    target = files_dir / file.name
    if target.exists():
        return
    unfinished = job_directory / f"{file.name}.incomplete"
    is_continued = unfinished.exists()
    _transfer(file, url, unfinished)
    if is_continued and not _is_intact(unfinished, file):
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
        start_bytes = sink.tell()
        if start_bytes < file.size:
            if start_bytes:
                logger.info("%s: continuing after %.1f MB", file.name, start_bytes / 1e6)
            elif file.sha256 is not None:
                logger.info("%s: fetching %.1f MB", file.name, file.size / 1e6)
            http_get(
                url,
                sink,
                resume_size=start_bytes,
                # A compressed download cannot continue from a position in the file.
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
