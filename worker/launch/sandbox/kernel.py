"""System calls that Python does not offer, through the C library. Each raises OSError."""

import ctypes
import os
import struct

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

_CAPABILITY_VERSION = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: int) -> None:
    values = [*arguments, 0, 0, 0, 0][:4]
    _check(_libc.prctl(option, *map(ctypes.c_ulong, values)))


def system_call(number: int, *arguments: int) -> int:
    """Call the kernel by number. Pointers are given as `ctypes.addressof`."""
    return _check(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)))


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    names = [os.fsencode(name) or None for name in (source, target, kind)]
    _check(_libc.mount(*names, ctypes.c_ulong(flags), os.fsencode(options) or None), target)


def drop_capabilities() -> None:
    """Set the capabilities of this thread to none."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    _check(_libc.capset(header, ctypes.create_string_buffer(24)))


def refuse_tracing() -> None:
    """Close this process's memory, environment and descriptors to others of the same user."""
    prctl(PR_SET_DUMPABLE, 0)


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
