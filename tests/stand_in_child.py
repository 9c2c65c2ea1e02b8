"""`python -m tests.stand_in_child DIR`: a child that does what DIR/script.json says, in order.

Each step is a list of a word and what belongs to it:

    ["say", TEXT]       write a line to standard output
    ["blurt", TEXT]     write to standard output, without an end
    ["log", TEXT]       write a line to standard error
    ["log-bytes", N]    write so many bytes to standard error, without an end
    ["link", NAME, TO]  put a symbolic link at DIR/NAME
    ["ignore", NAME]    ignore this signal from now on
    ["on-term", WORD, ...]  do this on SIGTERM, and then end well
    ["environment"]     write the names of its environment variables to DIR/environment
    ["leave-behind"]    start a process that keeps standard output open, and a lock on DIR/left.lock
    ["escape", CODE]    start a Python program in a session of its own that inherits both pipes
    ["wait"]            wait for ever
    ["delay", S]        do nothing for so many seconds
    ["raise", NAME]     send itself a signal
    ["exit", CODE]      end

A fork server uses it as its trainer. It then follows `DIR/prepare.json` before each job and
`TMPDIR/preload.json` once before the first, where these exist. There, one more step is known:

    ["thread"]          start a thread
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


def preload() -> None:
    """Follow `TMPDIR/preload.json`, if it exists. There is no job directory yet."""
    directory = Path(tempfile.gettempdir())
    if (directory / "preload.json").exists():
        follow("preload.json", directory)


def prepare(directory: Path) -> None:
    if (directory / "prepare.json").exists():
        follow("prepare.json", directory)


def main(directory: Path) -> None:
    follow("script.json", directory)


def escape(code: str) -> None:
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def log_bytes(count: int) -> None:
    for _ in range(count // MIB):
        os.write(sys.stderr.fileno(), b"x" * MIB)


def follow(script: str, directory: Path) -> None:
    def leave_behind() -> None:
        waiting = [sys.executable, "-c", "import signal; signal.pause()"]
        lock = os.open(directory / "left.lock", os.O_RDONLY | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.Popen(waiting, pass_fds=[lock])
        os.close(lock)

    def wait() -> None:
        while True:
            signal.pause()

    def end_after(word: str, *rest: object) -> None:
        words[word](*rest)
        sys.exit(0)

    words: dict[str, Any] = {
        "say": lambda text: print(text, flush=True),  # noqa: T201 - what it is for
        "blurt": lambda text: print(text, end="", flush=True),  # noqa: T201 - as above
        "log": lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201 - as above
        "log-bytes": log_bytes,
        "link": lambda name, target: (directory / name).symlink_to(target),
        "escape": escape,
        "ignore": lambda name: signal.signal(signal.Signals[name], signal.SIG_IGN),
        "on-term": lambda *step: signal.signal(signal.SIGTERM, lambda *_: end_after(*step)),
        "environment": lambda: (directory / "environment").write_text("\n".join(os.environ)),
        "leave-behind": leave_behind,
        "wait": wait,
        "delay": time.sleep,
        "raise": lambda name: signal.raise_signal(signal.Signals[name]),
        "exit": sys.exit,
        "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
    }
    for word, *rest in json.loads((directory / script).read_text()):
        words[word](*rest)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
