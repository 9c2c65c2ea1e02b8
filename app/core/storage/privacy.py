"""Keeps what the service stores readable by its owner alone.

The umask does this for new files. Older versions set none, so a process that starts closes the data
directory and what lies directly in it; nobody reaches what is below a closed directory. `tunery
doctor --repair` closes every file.

What lies below three directories need not be closed: a training child may run as another user, who
is then given its job directory and a cache, and may read its base model. A child can also nest
directories in them without end. The directory of base models itself may be open as well: the
sampler may be another user and read all of them.
"""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from app.core.base_models import MODELS_NAME
from app.core.settings import Settings

logger = logging.getLogger(__name__)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def keep_new_files_private() -> None:
    """Give other users no permission on any file that this process or a child of it creates."""
    os.umask(_OTHERS)


def close_data_directory(settings: Settings) -> None:
    """Close the data directory and what lies directly in it. What cannot be closed is logged."""
    for path in (settings.data_dir, *settings.data_dir.iterdir()):
        try:
            if path.name != MODELS_NAME and is_open(path):
                close(path)
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            logger.warning("other users may read %s: %s", path, error.strerror)


def iterate_open(settings: Settings) -> Iterator[Path]:
    """What other users have permissions on, in the data directory, less what children use."""
    if is_open(settings.data_dir):
        yield settings.data_dir
    used_by_children = (settings.work_dir, settings.cache_dir, settings.data_dir / MODELS_NAME)
    for parent, directories, files in os.walk(settings.data_dir):
        if Path(parent) in used_by_children:
            directories.clear()
            continue
        for name in (*directories, *files):
            path = Path(parent, name)
            if path == settings.data_dir / MODELS_NAME:
                continue
            try:
                if is_open(path):
                    yield path
            except FileNotFoundError:  # deleted meanwhile
                continue


def is_open(path: Path) -> bool:
    """Whether other users have a permission on `path`.

    False for a link, which has no permissions, and for a directory such as `/tmp`, which all users
    share.
    """
    mode = path.lstat().st_mode
    return not stat.S_ISLNK(mode) and not mode & stat.S_ISVTX and bool(mode & _OTHERS)


def close(path: Path) -> None:
    """Take the permissions of all other users away."""
    path.chmod(stat.S_IMODE(path.lstat().st_mode) & ~_OTHERS)
