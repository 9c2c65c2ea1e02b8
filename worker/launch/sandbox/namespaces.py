"""Namespaces of its own: no network interface, no other process and no other mount in sight.

Three processes take part. The first is the one that its launcher knows: it waits, and ends as the
training process ends. The second is the first process of the new namespace, which the kernel gives
orphans to and ends the whole namespace with. The third trains. Only the third returns from here.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from app.core.machine.linux import die_with_parent, unshare

_NEW_MOUNTS = 0x00020000
_NEW_IPC = 0x08000000
_NEW_USER = 0x10000000
_NEW_PROCESSES = 0x20000000
_NEW_NETWORK = 0x40000000


def enter_namespaces() -> None:
    """Continue in a new process with its own namespaces, with all capabilities in them.

    Raises:
        OSError: the kernel refuses. The process is as it was.
    """
    flags = _NEW_MOUNTS | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK
    if os.geteuid() == 0:
        unshare(flags)
    else:
        _enter_user_namespace(flags)
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until each knows its successor
    if (first := os.fork()) != 0:
        os.close(writer)
        _end_like(first, reader)
    os.close(reader)
    die_with_parent(writer)
    if (trainer := os.fork()) != 0:
        _look_after(trainer, writer)
    os.close(writer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _enter_user_namespace(flags: int) -> None:
    """Without privileges, a namespace of users comes first, with this user alone in it."""
    user, group = os.geteuid(), os.getegid()
    unshare(_NEW_USER | flags)
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")


def _end_like(first: int, reader: int) -> NoReturn:
    """Wait for the end of the namespace, and end as its training process has ended."""
    _pass_on_signals(first)
    os.waitpid(first, 0)
    exit_code = int(os.read(reader, 16) or -signal.SIGKILL)
    if exit_code < 0:
        if -exit_code != signal.SIGKILL:
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)


def _look_after(trainer: int, writer: int) -> NoReturn:
    """Be the first process of the namespace until the training process has ended."""
    _pass_on_signals(trainer)
    while True:
        ended, status = os.wait()
        if ended == trainer:
            os.write(writer, b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)


def _pass_on_signals(successor: int) -> None:
    """Let go of what is the training process's alone, and pass SIGTERM on to the next process."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)

    def pass_on(signal_number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(successor, signal_number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
