"""Tells a program's main loop that it is to stop."""

import os
import signal


def listen_for_stops() -> int:
    """Return a descriptor that can be read once for every SIGTERM and Ctrl-C.

    The handlers do nothing: they may interrupt any statement, and would then wait for a lock that
    the interrupted code holds.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: None)
    return reader
