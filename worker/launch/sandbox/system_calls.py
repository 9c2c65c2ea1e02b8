"""The seccomp filter: system calls that a training process never needs are refused.

It is a list of what is forbidden, because the libraries, the compiler and a GPU's driver need
hundreds of other calls. The kernel runs the filter, a program in its BPF language, at every call.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Sequence

from app.core.machine.linux import system_call

_NUMBERS = {
    # name: x86_64, aarch64. None where the architecture lacks the call.
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fcntl": (72, 25),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "seccomp": (317, 277),
    "semget": (64, 190),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "setsid": (112, 157),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of `_NUMBERS`, and the constant `AUDIT_ARCH_...` of the kernel."""

_SPECIAL = ("clone", "clone3", "fcntl", "kill", "prlimit64", "seccomp", "setpriority", "socketpair")
_OF_ANOTHER_PROCESS = (
    "move_pages", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
)  # fmt: skip
"""Calls whose first argument is a process, which 0 stands for the caller in."""
_SIGNALS = ("tgkill", "tkill")

_X32 = 0x40000000
"""First number of the x32 calls, a second way to reach the calls of x86_64."""
_NAMESPACE_FLAGS = 0x7E020000
"""The flags `CLONE_NEW...` of clone."""
_OWNERS = (8, 10, 15)
"""Commands of fcntl that send a signal to any process: F_SETOWN, F_SETSIG, F_SETOWN_EX."""
_AF_UNIX = 1
_SOCK_DGRAM = 2
_TYPE_BITS = 0xF

_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4
"""Leaves the processor's speculation as it is: switching it off would cost speed in old kernels."""

_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _IF_BITS, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
"""Offsets in `struct seccomp_data`."""

Code = list[bytes]


def is_known_architecture() -> bool:
    return platform.machine() in _ARCHITECTURES and sys.maxsize > 2**32


def refuse_system_calls(*, limits_signals: bool) -> None:
    """Refuse them to this thread and all that it starts, for good. Needs no_new_privs.

    `setsid` and `setpgid` are among them, so whatever the process starts stays in its process
    group and ends with it.

    Args:
        limits_signals: whether signals may reach only the process itself and its group. False where
            Landlock keeps signals inside the sandbox, which is finer.
    """
    filter_ = b"".join(_program(limits_signals=limits_signals))
    code = ctypes.create_string_buffer(filter_)
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(filter_) // 8, ctypes.addressof(code))
    )
    column, _ = _ARCHITECTURES[platform.machine()]
    number = _NUMBERS["seccomp"][column]
    assert number is not None  # noqa: S101 - every architecture has it
    system_call(number, _SET_MODE_FILTER, _SPEC_ALLOW, ctypes.addressof(program))


def _program(*, limits_signals: bool) -> Code:
    column, architecture = _ARCHITECTURES[platform.machine()]
    code = [
        _do(_LOAD, _ARCHITECTURE_AT),
        _do(_IF_EQUAL, architecture, then=1),
        _do(_RETURN, _KILL),  # a call of another architecture, such as of 32 bits
        _do(_LOAD, _NUMBER_AT),
        _do(_IF_AT_LEAST, _X32, otherwise=1),
        _do(_RETURN, _ERROR | _ENOSYS),
    ]
    for name, body in _rules(limits_signals=limits_signals).items():
        if (number := _NUMBERS[name][column]) is not None:
            code += [_do(_IF_EQUAL, number, otherwise=len(body)), *body]
    return [*code, _do(_RETURN, _ALLOW)]


def _rules(*, limits_signals: bool) -> dict[str, Code]:
    """What to do about each call that is not simply allowed."""
    special = {*_SPECIAL, *_OF_ANOTHER_PROCESS, *_SIGNALS}
    rules = {name: _refuse() for name in _NUMBERS if name not in special}
    rules |= {name: _only(0, [0]) for name in _OF_ANOTHER_PROCESS}
    rules |= {
        "clone": _no_bits(0, _NAMESPACE_FLAGS),
        "clone3": _refuse(_ENOSYS),  # its flags cannot be seen; the C library falls back to clone
        "fcntl": _none_of(1, _OWNERS),
        "prlimit64": _only(0, [0, os.getpid()]),
        "setpriority": _only(1, [0]),
        "socketpair": _only(0, [_AF_UNIX], then=_none_of(1, [_SOCK_DGRAM], mask=_TYPE_BITS)),
    }
    if limits_signals:
        pid, group = os.getpid(), os.getpgrp()
        rules |= {
            "kill": _only(0, [0, pid, _unsigned(-group)]),
            "tgkill": _only(0, [pid]),
            "tkill": _only(0, [pid]),
        }
    return rules


def _refuse(error: int = _EPERM) -> Code:
    return [_do(_RETURN, _ERROR | error)]


def _only(argument: int, values: Iterable[int], *, then: Code | None = None) -> Code:
    """Refuse the call unless the argument has one of the values; then go on with `then`."""
    values = list(values)
    ahead = range(len(values), 0, -1)  # from each comparison to the end of the refusal
    comparisons = [_do(_IF_EQUAL, value, then=n) for value, n in zip(values, ahead, strict=True)]
    return [_load(argument), *comparisons, *_refuse(), *(then or [_do(_RETURN, _ALLOW)])]


def _none_of(argument: int, values: Sequence[int], *, mask: int = 0xFFFFFFFF) -> Code:
    comparisons = [
        step for value in values for step in (_do(_IF_EQUAL, value, otherwise=1), *_refuse())
    ]
    return [_load(argument), _do(_AND, mask), *comparisons, _do(_RETURN, _ALLOW)]


def _no_bits(argument: int, mask: int) -> Code:
    return [
        _load(argument),
        _do(_IF_BITS, mask, otherwise=1),
        *_refuse(),
        _do(_RETURN, _ALLOW),
    ]


def _load(argument: int) -> bytes:
    """Load the lower half of an argument, which holds all of a number of 32 bits."""
    return _do(_LOAD, _ARGUMENTS_AT + 8 * argument)


def _unsigned(value: int) -> int:
    return value & 0xFFFFFFFF


def _do(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction. `then` and `otherwise` count the instructions that a comparison skips."""
    return struct.pack("=HBBI", code, then, otherwise, value)
