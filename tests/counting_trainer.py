"""The real trainer, with a count of what is loaded: a line in `LOADS`, beside the job's directory.

Each line has the id of the process that loads and what it loads: what a child inherits from its
fork server is not loaded again, and so is in no line of its own.
"""

import os
from pathlib import Path
from typing import Any

from worker import train

LOADS = "loads"


def preload() -> None:
    train.preload()


def prepare(directory: Path) -> None:
    _count_loads(directory)
    train.prepare(directory)


def main(directory: Path) -> None:
    _count_loads(directory)
    train.main(directory)


def loads(directory: Path) -> list[tuple[int, str]]:
    """Everything that was loaded for jobs beside this one's, by process."""
    lines = (directory.parents[1] / LOADS).read_text().splitlines()
    return [(int(pid), what) for pid, what in (line.split() for line in lines)]


def _count_loads(directory: Path) -> None:
    train._set_environment()
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - only now

    def count(auto: Any, what: str) -> None:
        def count_and_load(*args: Any, **options: Any) -> Any:
            with target.open("a") as lines:
                lines.write(f"{os.getpid()} {what}\n")
            return load(*args, **options)

        load = getattr(auto.from_pretrained, "uncounted", auto.from_pretrained)
        count_and_load.uncounted = load  # a fork of a process that counts, counts once
        auto.from_pretrained = count_and_load

    target = directory.parents[1] / LOADS
    count(AutoTokenizer, "tokenizer")
    count(AutoModelForCausalLM, "model")
