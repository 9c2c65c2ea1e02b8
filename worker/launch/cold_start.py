"""Runs as `python -m worker.launch.cold_start MODULE DIRECTORY LOCK CONFINEMENT`: trains contained.

MODULE and all that it imports are imported in the sandbox. LOCK is a descriptor to hold,
CONFINEMENT what to apply, in JSON.
"""

import importlib
import sys
from pathlib import Path

from worker.launch.sandbox.apply import confine_this_process
from worker.launch.sandbox.confinement import Confinement
from worker.launch.trainer import load_trainer


def main(module: str, directory: Path, lock: int, confinement: Confinement) -> None:
    for package in ("app", module.partition(".")[0]):
        importlib.import_module(package)  # their directory cannot be listed from inside
    confine_this_process(confinement, directory, lock)
    load_trainer(module).main(directory)


if __name__ == "__main__":
    main(
        sys.argv[1],
        Path(sys.argv[2]),
        int(sys.argv[3]),
        Confinement.model_validate_json(sys.argv[4]),
    )
