"""Files that are written before they are put into a blob store."""

import secrets
from collections.abc import Iterator
from pathlib import Path

SCRATCH_NAME = ".incoming"


class ScratchSpace:
    """A directory of files that have names nobody else has."""

    def __init__(self, root: Path) -> None:
        self._directory = root / SCRATCH_NAME
        self._directory.mkdir(parents=True, exist_ok=True)

    def scratch_file(self) -> Path:
        return self._directory / secrets.token_hex(16)

    def list_scratch(self) -> Iterator[Path]:
        return self._directory.iterdir()
