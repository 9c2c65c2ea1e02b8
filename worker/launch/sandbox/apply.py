"""Puts this process, which is to train or to sample, into its sandbox. There is no way back.

The order matters, because each step takes away what an earlier one needs:

1. Descriptors that were inherited are closed before anything could use them.
2. Limits are lowered while /proc still belongs to this process.
3. Namespaces need privileges, and go on in a new process. Mounts follow at once, because Landlock
   forbids them.
4. Privileges are given up, and with them the user. The kernel then forgets whose death this process
   shares, so it is asked again.
5. Landlock and seccomp need no_new_privs, which is set in step 4. Seccomp is last: it refuses the
   calls that all of this is made of.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from app.core.machine.linux import PR_SET_DUMPABLE, die_with_parent, prctl
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.file_access import (
    READ,
    USE_DEVICE,
    WRITE,
    Right,
    keeps_signals_inside,
    restrict_files,
)
from worker.launch.sandbox.limits import limit_resources
from worker.launch.sandbox.namespaces import enter_namespaces
from worker.launch.sandbox.privileges import give_up_privileges
from worker.launch.sandbox.system_calls import refuse_system_calls
from worker.launch.sandbox.view import hide_all_but

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/proc",
    "/etc/alternatives", "/etc/group", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd",
    "/sys/bus", "/sys/class", "/sys/devices", "/sys/fs/cgroup", "/sys/kernel/mm", "/sys/module",
)  # fmt: skip
"""What libraries and the compiler read of the system. Nothing here is secret."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dxg")

_SCRATCH_NAME = "tmp"
"""Directory for temporary files, in the job directory."""


def confine_this_process(confinement: Confinement, directory: Path, *kept: int) -> None:
    """Apply every layer. Returns in the process that goes on, which may be a new one.

    Args:
        directory: the job directory.
        kept: descriptors that stay open besides the standard ones, such as that of a lock.

    Raises:
        OSError: the kernel refuses a layer. The process must then end.
    """
    _close_all_but(kept)
    prctl(PR_SET_DUMPABLE, 1)  # /proc is closed to a copy of the fork server, which refuses tracing
    limit_resources(confinement.limits)
    if confinement.layers.namespaces:
        enter_namespaces()
        hide_all_but(
            [*confinement.readable, *confinement.writable],
            confinement.hidden,
            from_others=confinement.user is not None,
        )
    give_up_privileges(confinement.user)
    die_with_parent(1)
    os.chdir(directory)
    _set_environment(directory)
    if confinement.layers.files:
        restrict_files(_rights(confinement))
    if confinement.layers.system_calls:
        refuse_system_calls(limits_signals=not keeps_signals_inside())


def is_applied(directory: Path) -> bool:
    """Whether every process of a child that confines itself already dies with its parent."""
    return (directory / _SCRATCH_NAME).exists()


def _close_all_but(kept: Iterable[int]) -> None:
    begin = 3
    for descriptor in sorted(kept):
        os.closerange(begin, descriptor)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))


def _set_environment(directory: Path) -> None:
    """Let temporary files and what programs keep for their user be in the job directory."""
    scratch = directory / _SCRATCH_NAME
    scratch.mkdir(exist_ok=True)
    os.environ |= {"HOME": str(directory), "TMPDIR": str(scratch)}
    tempfile.tempdir = None  # it may have been looked up already


def _rights(confinement: Confinement) -> list[tuple[Path, Right]]:
    devices = [path for pattern in _DEVICES for path in Path("/dev").glob(pattern)]
    return [
        *((Path(path), READ) for path in SYSTEM),
        *((path, READ) for path in confinement.readable),
        *((path, USE_DEVICE) for path in devices),
        *((path, WRITE) for path in confinement.writable),
    ]
