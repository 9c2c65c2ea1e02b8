"""Ends a process when its parent dies, however the parent dies."""

import ctypes
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Linux, `prctl(2)`: the signal to get when the parent dies."""


def die_with_parent(shared: int) -> None:
    """End this process as soon as its parent dies; at once, if it is dead already.

    To the kernel, the parent is the thread that has forked.

    Args:
        shared: descriptor of a pipe or socket whose other end only the parent holds. It shows
            whether the parent died before the kernel was asked to watch it.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    other_end = select.poll()
    other_end.register(shared, 0)  # POLLERR and POLLHUP are always reported
    if any(seen & (select.POLLERR | select.POLLHUP) for _, seen in other_end.poll(0)):
        sys.exit("the worker is gone")
