"""System calls that Python does not offer, through the C library. Each raises OSError."""

import ctypes
import os
import select
import signal
import struct
import sys

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

_PR_SET_PDEATHSIG = 1
"""Linux, `prctl(2)`: the signal to get when the parent dies."""

_M_ARENA_MAX = -8
"""glibc, `mallopt(3)`: the greatest number of heaps."""

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
    if sys.platform == "linux":
        prctl(PR_SET_DUMPABLE, 0)


def share_heaps(count: int) -> None:
    """Let the threads of this process share so many heaps of the C library, if it is glibc.

    By default it makes up to eight for each processor. What a thread frees in one of them is not
    used by the others, so a process with many threads grows for hours. Call this before threads
    are started.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, count)


def trim_heaps() -> None:
    """Give memory that was freed back to the system, if the C library is glibc.

    It keeps what lies between pieces that are still used.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def be_killed_with_parent() -> None:
    """Let the kernel kill this process as soon as its parent dies, even while it is stopped.

    It can be called right after a fork: it takes one system call.
    """
    if sys.platform == "linux":
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_parent(shared: int) -> None:
    """End this process as soon as its parent dies; at once, if it is dead already.

    To the kernel, the parent is the thread that has forked.

    Args:
        shared: descriptor of a pipe or socket whose other end only the parent holds. It shows
            whether the parent died before the kernel was asked to watch it.
    """
    if sys.platform != "linux":
        return
    be_killed_with_parent()
    other_end = select.poll()
    other_end.register(shared, 0)  # POLLERR and POLLHUP are always reported
    if any(seen & (select.POLLERR | select.POLLHUP) for _, seen in other_end.poll(0)):
        sys.exit("the parent process is gone")


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
