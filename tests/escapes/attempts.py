"""A training process that tries to get out. Each attempt fails with an OSError, or it has escaped.

It is a trainer for the launchers: `main` makes every attempt and writes what came of each to
`results.json`, as the reason why it failed, or null if it succeeded.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.escapes.targets import RESULTS_NAME, TARGETS_NAME, Targets

MOST_PROCESSES = 800
TERABYTE = 1024**4
_libc = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {
    "x86_64": (310, 438, 250, 321, 425, 323, 298),
    "aarch64": (270, 438, 219, 280, 425, 282, 241),
}
VM_READV, PIDFD_GETFD, KEYCTL, BPF, IO_URING_SETUP, USERFAULTFD, PERF_EVENT_OPEN = _NUMBERS[
    os.uname().machine
]


def call(number: int, *arguments: int) -> int:
    return check(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments)))


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def is_allowed(attempt: Callable[[], object]) -> None:
    """Pass over what fails for another reason than that it is forbidden."""
    try:
        attempt()
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH}:
            raise


def permit(number: int, *arguments: int) -> None:
    is_allowed(lambda: call(number, *arguments))


def elsewhere(attempt: Callable[[], object]) -> None:
    """Make an attempt in another process, whose state it may change."""
    if (other := os.fork()) == 0:
        try:
            attempt()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    if failure := os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]):
        raise OSError(failure, os.strerror(failure))


def create(path: Path) -> None:
    path.write_text("")
    path.unlink()


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x")


def attempts(targets: Targets, directory: Path) -> dict[str, Callable[[], object]]:
    worker = targets.worker
    return {
        "write to inherited files": write_to_inherited,
        "connect to the API": lambda: socket.create_connection(("127.0.0.1", targets.api_port), 5),
        "connect to an abstract socket": lambda: connect_abstract(targets.abstract_socket),
        "make a datagram socket": lambda: socket.socketpair(type=socket.SOCK_DGRAM),
        "read the database": targets.database.read_bytes,
        "write the database": lambda: overwrite(targets.database),
        "read a blob": targets.blob.read_bytes,
        "write a blob": lambda: overwrite(targets.blob),
        "read the signing key": targets.signing_key.read_bytes,
        "write the signing key": lambda: overwrite(targets.signing_key),
        "write the base model": lambda: overwrite(targets.base_model),
        "read another job": targets.other_job.read_bytes,
        "write another job": lambda: overwrite(targets.other_job),
        "read /etc/shadow": lambda: Path("/etc/shadow").read_bytes(),
        "read the worker's environment": lambda: Path(f"/proc/{worker}/environ").read_bytes(),
        "write the worker's memory": lambda: Path(f"/proc/{worker}/mem").open("r+b"),
        "see the worker's files": lambda: Path(f"/proc/{worker}/fd/0").readlink(),
        "go through the worker's root": lambda: Path(f"/proc/{worker}/root/etc/hosts").stat(),
        "trace the worker": lambda: check(_libc.ptrace(0x4206, worker, 0, 0)),
        "trace the parent": lambda: check(_libc.ptrace(0x4206, os.getppid(), 0, 0)),
        "read the worker's memory": lambda: permit(VM_READV, worker, 0, 0, 0, 0, 0),
        "take the worker's files": lambda: permit(PIDFD_GETFD, os.pidfd_open(worker), 0, 0),
        "signal the worker": lambda: os.kill(worker, 0),
        "signal the worker's group": lambda: os.killpg(os.getpgid(worker), 0),
        "limit the worker": lambda: resource.prlimit(worker, resource.RLIMIT_NOFILE, (1024, 1024)),
        "slow the worker": lambda: os.setpriority(os.PRIO_PROCESS, worker, 1),
        "mount": lambda: is_allowed(mount_nothing),
        "make a user namespace": lambda: elsewhere(lambda: check(_libc.unshare(0x10000000))),
        "change the root": lambda: elsewhere(lambda: os.chroot("/")),
        "become root": become_root,
        "use keys": lambda: permit(KEYCTL, 0, 0, 0),
        "use bpf": lambda: permit(BPF, 0, 0, 0),
        "use io_uring": lambda: permit(IO_URING_SETUP, 1, ctypes.addressof(_zeros)),
        "use userfaultfd": lambda: permit(USERFAULTFD, 1),
        "use perf events": lambda: permit(PERF_EVENT_OPEN, ctypes.addressof(_zeros), 0, -1, -1, 0),
        "leave the session": lambda: elsewhere(os.setsid),
        "write the code": lambda: create(targets.code / "escaped.py"),
        "write the libraries": lambda: create(targets.libraries / "escaped.py"),
        "write the machine's cache": lambda: overwrite(targets.machine_cache),
        "read another project's compiled code": targets.other_cache.read_bytes,
        "write another project's compiled code": lambda: overwrite(targets.other_cache),
        "rename the lock's holder": lambda: overwrite(targets.job_lock),
        "write a terabyte": lambda: write_sparse(directory / "sparse"),
        "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (TERABYTE, TERABYTE)),
        "take all memory": lambda: take_memory(targets.memory_bytes),
        "start processes without end": start_processes,
        "make a link": lambda: (directory / "link").symlink_to("/etc/passwd"),
        "make a pipe": lambda: os.mkfifo(directory / "pipe"),
        "start a program of its own": lambda: start_own_program(directory),
    }  # fmt: skip


_zeros = ctypes.create_string_buffer(128)


def connect_abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{name}")


def become_root() -> None:
    os.setresuid(0, 0, 0)
    Path("/proc/self/oom_score_adj").write_text("-1000")


def mount_nothing() -> None:
    check(_libc.mount(b"none", b"/tmp", b"no such type", 0, None))


def take_memory(bytes_: int) -> None:
    """In two parts, because the kernel never gives more than there is in one."""
    parts = [mmap.mmap(-1, bytes_ // 2, flags=mmap.MAP_PRIVATE) for _ in range(2)]
    for part in parts:
        part.close()


def write_to_inherited() -> None:
    """Through every descriptor but those for its events and its log."""
    for descriptor in range(3, 64):
        try:
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        except OSError:
            continue  # it is closed
        if mode & os.O_ACCMODE != os.O_RDONLY and not mode & os.O_PATH:
            return
    raise OSError("none can be written to")


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTE)
    path.unlink()


def start_processes() -> None:
    """As many as the kernel allows, up to a number that no job needs."""
    started: list[int] = []
    reader, writer = os.pipe()
    try:
        for _ in range(MOST_PROCESSES):
            if (child := os.fork()) == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            started.append(child)
    finally:
        os.close(writer)
        os.close(reader)
        for child in started:
            os.waitpid(child, 0)


def start_own_program(directory: Path) -> None:
    program = directory / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    subprocess.run([str(program)], check=True)


def main(directory: Path) -> None:
    targets = Targets.model_validate_json((directory / TARGETS_NAME).read_bytes())
    results: dict[str, str | None] = {}
    for name, attempt in attempts(targets, directory).items():
        try:
            attempt()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            results[name] = str(error)
        else:
            results[name] = None
    (directory / RESULTS_NAME).write_text(json.dumps(results))
    if (directory / "leave a daemon").exists():
        leave_daemon(directory)


def leave_daemon(directory: Path) -> None:
    """Leave a process behind that goes as far from this one as it can."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        with suppress(OSError):  # then it stays in the session
            os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            lock = os.open(directory / "daemon.lock", os.O_CREAT | os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(lock, b"%d" % os.getpid())
            os.closerange(0, 3)
            os.close(writer)
            time.sleep(60)
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # until the daemon holds its lock and has let go of everything else


def preload() -> None:
    """There is nothing to load."""


def prepare(directory: Path) -> None:
    """There is nothing to load."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
