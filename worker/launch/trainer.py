"""What trains: the module `worker.train`, or what stands in for it."""

import importlib
from pathlib import Path
from typing import Protocol, cast


class Trainer(Protocol):
    """A module, as launchers see it."""

    def preload(self) -> None:
        """Load what every job needs."""
        ...

    def prepare(self, directory: Path) -> None:
        """Load what `main` needs for the job in `directory`, unless that is loaded already."""
        ...

    def main(self, directory: Path) -> None:
        """Train that job; after `prepare`, in a copy of the process that has prepared it."""
        ...


def load_trainer(module: str) -> Trainer:
    return cast("Trainer", importlib.import_module(module))
