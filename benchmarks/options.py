"""What one may ask of the benchmark, and the tasks that follow from it."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from benchmarks.data import write_data
from benchmarks.docstrings import DataKind
from benchmarks.machine import ISAS, trainer_environment
from benchmarks.trainers.task import MAX_TOKENS, Task
from benchmarks.trainers.trl_variants import BEST, VARIANTS

ROOT = Path(__file__).parents[1]
PARTS = ("speed", "search", "sizes", "quality", "layers", "service", "large", "tight", "estimates")
TRAINERS = ("reference", "trl", "tunery", "products")
"""The last are the matrix products alone."""
_LONG_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    parts: Sequence[str]
    data: DataKind
    model: Path
    examples: int
    validation: int
    steps: int | None
    """Optimizer steps that are timed; None for as many as one pass over the examples takes."""
    warm_up: int
    rounds: int
    jobs: int
    """Number of jobs whose estimates are compared."""
    batch_size: int
    threads: int
    seed: int
    isa: str
    trainers: Sequence[str]
    variant: str
    layers: int
    memory: int
    """Memory limit of `tight`, in GiB."""
    cache: Path
    results: Path
    write: bool

    @property
    def timed_steps(self) -> int:
        return self.steps or -(-self.examples // self.batch_size)

    @property
    def max_tokens(self) -> int:
        """Tokens that an example is cut to."""
        return _LONG_TOKENS if self.data == "long" else MAX_TOKENS


def read_options(arguments: Sequence[str], description: str | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--data", choices=get_args(DataKind), default="docstrings", help="kind of the examples")
    add("--model", type=Path, default=ROOT / "data" / "models" / "smollm2-135m-instruct")
    add("--examples", type=int, default=64, help="to train on")
    add("--validation", type=int, default=32, help="examples held out, for `quality`")
    add("--steps", type=int, help="timed; one pass over the examples unless set")
    add("--warm-up", type=int, default=1, help="steps before those")
    add("--rounds", type=int, default=2, help="turns of each; seeds of `quality`")
    add("--jobs", type=int, default=10, help="of `estimates`")
    add("--batch-size", type=int, default=4, help="examples of an optimizer step")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--isa", choices=list(ISAS), default="native", help="instructions to hold everybody to")
    add("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    add("--variant", choices=list(VARIANTS), help="of TRL; the best that is known unless set")
    add("--layers", type=int, default=28, help="of the random model of `large`; it has 28")
    add("--memory", type=int, default=20, help="GiB that `tight` is held to; 0 for no limit")
    add("--cache", type=Path, default=ROOT / ".cache" / "benchmarks", help="for the random model")
    add("--results", type=Path, help="JSON file that every part is added to; in the cache else")
    add("--write", action="store_true", help="write docs/benchmarks.md and its chart")
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    values["parts"] = values["parts"] or ["speed"]
    values["variant"] = values["variant"] or BEST[values["isa"]]
    values["cache"] = values["cache"].resolve()
    values["results"] = values["results"] or values["cache"] / "results.json"
    values["model"] = values["model"].resolve()
    return Options(**values)


class Bench:
    """A place for one part of the benchmark: its data, and tasks on it.

    Attributes:
        about_data: how long the examples are.
    """

    def __init__(self, options: Options, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._tasks = 0
        self.about_data = write_data(
            directory / "data",
            options.model,
            kind=options.data,
            examples=options.examples,
            validation=options.validation,
            seed=options.seed,
            max_tokens=options.max_tokens,
        )
        steps = options.warm_up + options.timed_steps
        self._task = Task(
            model=str(options.model),
            data=str(directory / "data"),
            scratch="",
            threads=options.threads,
            seed=options.seed,
            batch_size=options.batch_size,
            max_tokens=options.max_tokens,
            is_dpo=options.data == "pairs",
            steps=steps,
        )

    @property
    def has_pairs(self) -> bool:
        return self._task.is_dpo

    @property
    def environment(self) -> dict[str, str]:
        options = self._options
        return trainer_environment(
            threads=options.threads, isa=options.isa, scratch=self._directory
        )

    @contextmanager
    def task(self, **changes: Any) -> Iterator[Task]:
        """A task with a scratch directory that is there only while it lasts."""
        self._tasks += 1
        scratch = self._directory / f"task-{self._tasks}"
        scratch.mkdir()
        yield replace(self._task, scratch=str(scratch), **changes)
        shutil.rmtree(scratch)


@contextmanager
def open_bench(options: Options) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as name:
        yield Bench(options, Path(name))
