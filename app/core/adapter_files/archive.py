"""Finds the two files of an adapter in a zip archive, which may be hostile."""

import stat
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME

_MAX_MEMBERS = 1000
_MAX_CONFIG_BYTES = 1024 * 1024
_ENCRYPTED = 0x1
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class ImportRefusedError(Exception):
    """The archive cannot be imported. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class AdapterArchive:
    config: bytes
    """Content of `adapter_config.json`."""
    weights: IO[bytes]
    """`adapter_model.safetensors`, unpacked while it is read."""
    weights_bytes: int
    """Size that the archive declares. No more bytes than that can be read."""


@contextmanager
def open_archive(path: Path) -> Generator[AdapterArchive]:
    """Open a zip archive of a folder that `peft` has saved.

    Raises:
        ImportRefusedError: it is no such archive, or something in it is not as it should be. This
            may show only when the weights are read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            weights, config = _find_adapter(archive)
            text = archive.read(config)
            with archive.open(weights) as source:
                yield AdapterArchive(text, source, weights.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ImportRefusedError(f"The file is damaged, or not a zip archive: {error}.") from error
    except (NotImplementedError, RuntimeError, UnicodeError) as error:
        raise ImportRefusedError(f"The zip archive cannot be read: {error}.") from error


def _find_adapter(archive: zipfile.ZipFile) -> tuple[zipfile.ZipInfo, zipfile.ZipInfo]:
    """The members with the weights and with the configuration."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(archive.infolist()) > _MAX_MEMBERS:
        raise ImportRefusedError(f"The archive has more than {_MAX_MEMBERS:,} members.")
    names: set[str] = set()
    for member in archive.infolist():
        _check_member(member)
        if member.filename in names:
            raise ImportRefusedError(f"The archive has {_show(member)} twice.")
        names.add(member.filename)
    weights = _find(members, ADAPTER_WEIGHTS_NAME)
    config = _find(members, ADAPTER_CONFIG_NAME)
    if _folder(weights) != _folder(config):
        raise ImportRefusedError(
            f"{ADAPTER_WEIGHTS_NAME} and {ADAPTER_CONFIG_NAME} must be in the same folder."
        )
    if config.file_size > _MAX_CONFIG_BYTES:
        raise ImportRefusedError(
            f"{ADAPTER_CONFIG_NAME} has more than {_MAX_CONFIG_BYTES:,} bytes."
        )
    return weights, config


def _check_member(member: zipfile.ZipInfo) -> None:
    """Refuse a member that no honest archive has, also if it would not be read."""
    name = member.orig_filename
    if not name or name.startswith("/") or "\\" in name or ":" in name or not name.isprintable():
        raise ImportRefusedError(f"The archive has a member with the invalid path {_show(member)}.")
    if ".." in name.split("/"):
        raise ImportRefusedError(f"{_show(member)} leads out of the archive.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ImportRefusedError(f"{_show(member)} is a link or a special file.")
    if member.flag_bits & _ENCRYPTED:
        raise ImportRefusedError(f"{_show(member)} is encrypted.")


def _find(members: list[zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    found = [member for member in members if PurePosixPath(member.filename).name == name]
    if len(found) > 1:
        raise ImportRefusedError(f"The archive has {len(found)} files named {name}. Keep one.")
    if found:
        return found[0]
    has_pickle = any(member.filename.endswith(_PICKLES) for member in members)
    is_weights = name == ADAPTER_WEIGHTS_NAME
    advice = " Weights are read from safetensors only." if has_pickle and is_weights else ""
    raise ImportRefusedError(f"The archive has no {name}.{advice}")


def _folder(member: zipfile.ZipInfo) -> str:
    return member.filename.rpartition("/")[0]


def _show(member: zipfile.ZipInfo) -> str:
    return ascii(member.orig_filename[:200])
