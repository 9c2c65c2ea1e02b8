"""A process that the keeper starts instead of one that answers requests: it only goes wrong.

The file `how` beside its working directory says how. There it writes down its process id and what
it gets.
"""

import os
import signal
import sys
from pathlib import Path

from worker.sampling.serving.options import READY

_WITHOUT_A_NAME = 40
"""A real-time signal."""


def main() -> None:
    for name, argument in zip(("options", "confinement"), sys.argv[3:], strict=False):
        Path("..", name).write_text(argument, encoding="utf-8")
    with Path("../started").open("a", encoding="utf-8") as started:
        started.write(f"{os.getpid()}\n")
    sys.stdout.write(f"{READY}\n")  # from now on, the keeper may lose its patience
    sys.stdout.flush()
    how = Path("../how").read_text(encoding="utf-8")
    if how == "closes its output":
        os.close(1)
        os.close(2)
    if how == "ends":
        sys.exit(3)
    if how == "is killed":
        os.kill(os.getpid(), _WITHOUT_A_NAME)
    signal.pause()


if __name__ == "__main__":
    main()
