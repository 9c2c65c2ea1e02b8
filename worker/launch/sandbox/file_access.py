"""Landlock: which files the process may open, and whom it may reach. Needs no privilege.

Rules only ever add rights, so everything that no rule names is closed.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

from app.core.machine.linux import system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_PATH_BENEATH = 1


class Right(IntFlag):
    """Rights on files, as `linux/landlock.h` numbers them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Right.EXECUTE | Right.READ_FILE | Right.READ_DIR
WRITE = (
    Right.READ_FILE | Right.READ_DIR | Right.WRITE_FILE | Right.REMOVE_DIR | Right.REMOVE_FILE
    | Right.MAKE_DIR | Right.MAKE_REG | Right.REFER | Right.TRUNCATE
)  # fmt: skip
"""No links, pipes, sockets and devices are made here, and no program is started from here."""
USE_DEVICE = Right.READ_FILE | Right.WRITE_FILE | Right.IOCTL_DEV
_OF_FILES = Right.EXECUTE | Right.TRUNCATE | USE_DEVICE

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights on files, by the version of Landlock that brought them."""
_TCP_SINCE, _ALL_TCP = 4, 3
_SCOPES_SINCE, _ALL_SCOPES = 6, 3
"""Scopes: abstract sockets and signals stay inside the sandbox."""


def landlock_version() -> int:
    """Version of Landlock in this kernel; 0 if it has none, or if it is switched off."""
    try:
        return system_call(_CREATE_RULESET, 0, 0, _ASK_VERSION)
    except OSError:
        return 0


def keeps_signals_inside() -> bool:
    return landlock_version() >= _SCOPES_SINCE


def restrict_files(rights: Iterable[tuple[Path, Right]]) -> None:
    """Close all files to this thread and all that it starts, except these and what lies below.

    TCP, signals to processes outside and abstract sockets are closed as well, where the kernel can.
    A path that does not exist is passed over. Needs no_new_privs.
    """
    version = landlock_version()
    handled = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    tcp = _ALL_TCP if version >= _TCP_SINCE else 0
    scopes = _ALL_SCOPES if version >= _SCOPES_SINCE else 0
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", handled, tcp, scopes), 24)
    ruleset = system_call(_CREATE_RULESET, ctypes.addressof(attributes), 24, 0)
    try:
        for path, right in rights:
            _allow(ruleset, path, right & handled)
        system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, right: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            right &= _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", right, descriptor), 12)
        system_call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(descriptor)
