"""What tells a program's main loop to stop, and what signals are called."""

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


def describe_exit(exit_code: int) -> str:
    """Say how a process has ended. Its exit code is negative if a signal has ended it."""
    return signal_name(-exit_code) if exit_code < 0 else f"exit code {exit_code}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
