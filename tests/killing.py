"""Kills a copy of this process wherever it is told to, as a power switch or an OOM killer would.

A copy that was forked dies without running one more line, so nothing is tidied up behind it.
"""

import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

FILE_OPERATIONS = frozenset(
    {
        "copy_file_range",
        "fsync",
        "mkdir",
        "rename",
        "replace",
        "sendfile",
        "serialize_file",  # of safetensors
        "write",
        "writelines",
    }
)
"""Functions of C or Rust that change a disk, or wait for it. A file that was opened and not yet
written is seen before its first write; what is only read makes no difference."""


def is_killed_before(operation: int, action: Callable[[], object]) -> bool:
    """Run `action` in a copy of this process, killed before its file operation of that number.

    Returns whether it came so far; operations count from 1.
    """

    def watched() -> None:
        count = 0

        def kill_in_time(_frame: object, event: str, function: Any) -> None:
            nonlocal count
            if event == "c_call" and _changes_disk(function):
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(kill_in_time)
        action()

    return _dies_of(signal.SIGKILL, watched)


def _changes_disk(function: Any) -> bool:
    is_in_memory = isinstance(getattr(function, "__self__", None), str | io.StringIO | io.BytesIO)
    return function.__name__ in FILE_OPERATIONS and not is_in_memory


def is_killed_in_write_beyond(size: int, action: Callable[[], object]) -> bool:
    """Run `action` in a copy of this process, killed in the write that makes a file larger.

    The bytes up to `size` are written. Returns whether there was such a write.
    """

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would see an error
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        action()

    return _dies_of(signal.SIGXFSZ, limited)


def _dies_of(signal_number: int, action: Callable[[], object]) -> bool:
    process = os.fork()
    if process == 0:
        exit_code = 1
        try:
            action()
            exit_code = 0
        except BaseException:  # nothing may get back into the test
            traceback.print_exc()
        finally:
            os._exit(exit_code)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal_number:
        return True
    assert status == 0, f"The copy ended with status {status}."
    return False
