"""Take a base model from a model hub, at one commit."""

import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import httpx2  # huggingface_hub lets its errors through when it reaches nobody
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.core.base_models import HubSource
from worker.model_store.checks import check_configs, find_weight_files, is_wanted
from worker.model_store.errors import InstallError
from worker.model_store.hub_file import HubFile, download

_API_TIMEOUT_S = 30.0
_SPARE_BYTES = 256 * 1024 * 1024
"""Space on the disk that an installation leaves free, in bytes."""


def fetch_from_hub(
    source: HubSource, *, job_directory: Path, files_dir: Path, endpoint: str | None = None
) -> str:
    """Download the files of a model into `files_dir` and return the commit they are from.

    After an interrupted call, the next one keeps whole files, continues an unfinished file, and
    takes the same commit of the default branch.

    Args:
        job_directory: directory of the files that a later call needs to continue.
        endpoint: address of the hub; by default HF_ENDPOINT, or huggingface.co.

    Raises:
        InstallError: the hub cannot be reached, refuses, or serves other files than it lists.
    """
    with _in_plain_words(source.repo, job_directory, endpoint or constants.ENDPOINT):
        commit, listing = _list_files(source, job_directory, files_dir, endpoint)

        def fetch(files: Iterable[HubFile]) -> None:
            for file in files:
                url = hf_hub_url(source.repo, file.name, revision=commit, endpoint=endpoint)
                download(file, url, job_directory=job_directory, files_dir=files_dir)

        fetch(file for file in listing.values() if is_wanted(file.name))
        check_configs(files_dir)  # before gigabytes are downloaded for nothing
        weights = [listing[name] for name in find_weight_files(files_dir, listing)]
        _check_space(weights, job_directory, files_dir)
        fetch(weights)
    return commit


def _list_files(
    source: HubSource, job_directory: Path, files_dir: Path, endpoint: str | None
) -> tuple[str, dict[str, HubFile]]:
    """The commit, and by name the files at its root that have a checksum."""
    remembered = job_directory / "commit"  # `REPO COMMIT` of the files already there
    earlier = remembered.read_text("utf-8").split() if remembered.exists() else []
    revision = source.revision or (earlier[1] if earlier[:1] == [source.repo] else None)
    info = HfApi(endpoint=endpoint).model_info(
        source.repo, revision=revision, files_metadata=True, timeout=_API_TIMEOUT_S
    )
    commit = info.sha
    if commit is None or revision not in (None, commit):
        raise InstallError(f"It answers with the commit {commit} when asked for {revision}.")
    if earlier != [source.repo, commit]:
        _start_over(job_directory, files_dir)
        remembered.write_text(f"{source.repo} {commit}", "utf-8")
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


def _start_over(job_directory: Path, files_dir: Path) -> None:
    """Remove the files of another commit, because two commits must not mix."""
    shutil.rmtree(job_directory)
    files_dir.mkdir(parents=True)


def _check_space(files: Iterable[HubFile], job_directory: Path, files_dir: Path) -> None:
    there = sum(path.stat().st_size for path in (*job_directory.iterdir(), *files_dir.iterdir()))
    needed = sum(file.size for file in files) - there + _SPARE_BYTES
    free = shutil.disk_usage(job_directory).free
    if needed > free:
        raise InstallError(
            f"It needs {needed / 1e9:.1f} GB more on the disk of {job_directory}, which has "
            f"{free / 1e9:.1f} GB left. Make room, then try again."
        )


@contextmanager
def _in_plain_words(repo: str, job_directory: Path, endpoint: str) -> Generator[None]:
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
            f"or, if it has none, remove {job_directory} to take the newest commit."
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
