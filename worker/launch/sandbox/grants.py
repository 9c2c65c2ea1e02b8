"""What a job's training process is given of the file system."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from app.core.job.child.job_spec import BASE_MODEL_NAME, MACHINE_CACHE_NAME, PROJECT_CACHE_NAME
from app.core.machine.subprocesses import ROOT


def readable_paths(directory: Path, module: str, *, hidden: Path) -> Iterator[Path]:
    """What the process may read and execute, besides the system and what it may write.

    Args:
        directory: the job directory.
        module: what the process runs.
        hidden: the data directory, of which nothing but the base model and the speeds of the
            processor is given.
    """
    yield from library_paths(module, hidden=hidden)
    for name in (BASE_MODEL_NAME, MACHINE_CACHE_NAME):
        if (directory / name).exists():
            yield (directory / name).resolve()


def library_paths(module: str, *, hidden: Path) -> Iterator[Path]:
    """Our code, and Python with what is installed for it, without what lies in `hidden`."""
    packages = {"app", "worker", module.partition(".")[0]}
    yield from (ROOT / package for package in sorted(packages))
    installed = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    installed |= {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    installed |= set(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    for path in sorted(map(Path, installed)):
        yield from _around(path, hidden)


def link_cache(link: Path, cache: Path) -> None:
    """Make a cache that jobs share, and the link to it in a job directory."""
    cache.mkdir(parents=True, exist_ok=True)
    link.symlink_to(cache.resolve())


def make_cache(directory: Path, user: int) -> Path:
    """Make the directory in which this user's jobs of the project keep compiled layers.

    A job compiles in the name of its user, so two users never run each other's code.
    """
    cache = (directory / PROJECT_CACHE_NAME).resolve() / str(user)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return cache


def hand_over(directory: Path, cache: Path, user: int) -> None:
    """Let the job directory and the cache belong to this user, who may also read the base model."""
    os.chown(cache, user, user)
    for parent, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            os.chown(Path(parent, name), user, user, follow_symlinks=False)
    open_to_all((directory / BASE_MODEL_NAME).resolve())


def open_to_all(base_model: Path) -> None:
    """Let every user read a base model. Nobody reaches it from outside the data directory."""
    for path in filter(Path.exists, (base_model, *base_model.glob("*"))):
        mode = path.stat().st_mode
        wanted = mode | (0o555 if path.is_dir() else 0o444)
        if wanted != mode:
            path.chmod(wanted)


def _around(path: Path, hidden: Path) -> Iterator[Path]:
    """A directory; if the hidden one lies inside, all that lies beside the way to it."""
    resolved = path.resolve()
    if resolved == hidden or hidden in resolved.parents or not path.is_dir():
        return
    if resolved not in hidden.parents:
        yield path
        return
    for child in path.iterdir():
        yield from _around(child, hidden) if child.is_dir() else (child,)
