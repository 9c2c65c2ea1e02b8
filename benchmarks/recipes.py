"""Which hyperparameters give a good model: the reference's, or those of the recipe `auto`?

    python -m benchmarks.recipes                  # every task, candidate and seed, then the tables
    python -m benchmarks.recipes --threads 1      # beside other work

Each run is a small job. It is judged by the loss on rows that were held out, and by how many of
these the tuned model answers right when it generates greedily. Every run is added to a file of
results; a run that is in it is not repeated. `docs/recipes.md` has the tables.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from app.core.job.training_config import LoraShape, TrainingConfig
from benchmarks.options import ROOT
from benchmarks.recipe_runs import Runner
from benchmarks.recipe_tasks import RecipeTask, build_tasks

_WIDE = LoraShape(
    rank=16,
    alpha=32,
    target_modules=(
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ),
)  # fmt: skip

CANDIDATES = {
    "reference": TrainingConfig(seed=0),
    "reference at 8e-4": TrainingConfig(seed=0, learning_rate=8e-4),
    "all-linear at 4e-4": TrainingConfig(seed=0, lora=_WIDE, learning_rate=4e-4),
    "all-linear at 1e-3": TrainingConfig(seed=0, lora=_WIDE, learning_rate=1e-3),
}
"""The adapter of the reference, at its rate and at the one that `auto` chooses for it; that of
`auto`, at its rate and at a higher one."""

FEW_ROWS = 16
CANDIDATES_FOR_FEW_ROWS = {
    f"{epochs} epochs": CANDIDATES["all-linear at 4e-4"].model_copy(update={"epochs": epochs})
    for epochs in (3, 10)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run."""

    model: str
    task: str
    candidate: str
    seed: int
    valid_losses: dict[str, float]
    """Validation loss by step, in nats per learned token. That of step 0 is the base model's."""
    right: int
    asked: int

    @property
    def run(self) -> tuple[str, str, str, int]:
        return self.model, self.task, self.candidate, self.seed

    @property
    def valid_loss(self) -> float:
        return list(self.valid_losses.values())[-1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=ROOT / "data" / "models" / "smollm2-135m-instruct")
    add("--seeds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "recipes.jsonl")
    options = parser.parse_args(arguments)
    path: Path = options.results
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch:
        model: Path = options.model.resolve()
        runner = Runner(model=model, threads=options.threads, scratch=Path(scratch))
        for seed in range(options.seeds):
            _measure(runner, seed, path)
    results = read_results(path)
    for candidates in (CANDIDATES, CANDIDATES_FOR_FEW_ROWS):
        print(format_table([one for one in results if one.candidate in candidates]), "\n")
    return 0


def _measure(runner: Runner, seed: int, path: Path) -> None:
    """Do the runs with this seed that the file of results lacks."""
    done = {result.run for result in read_results(path)}
    for task, candidate, config in _list_runs():
        if (runner.model.name, task.name, candidate, seed) in done:
            continue
        outcome = runner.run(task, config.model_copy(update={"seed": seed}))
        result = Result(
            model=runner.model.name,
            task=task.name,
            candidate=candidate,
            seed=seed,
            asked=len(task.held_out),
            **asdict(outcome),
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(result, flush=True)


def _list_runs() -> Iterator[tuple[RecipeTask, str, TrainingConfig]]:
    """Each task with each candidate for it."""
    tasks = build_tasks()
    short = [task.shortened(FEW_ROWS) for task in tasks]
    for some, candidates in ((tasks, CANDIDATES), (short, CANDIDATES_FOR_FEW_ROWS)):
        for task, (name, config) in itertools.product(some, candidates.items()):
            yield task, name, config


def read_results(path: Path) -> list[Result]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [Result(**json.loads(line)) for line in lines]


def format_table(results: Sequence[Result]) -> str:
    """Mean validation loss and right answers over all seeds, as a table of Markdown."""
    tasks = list(dict.fromkeys(result.task for result in results))
    lines = ["| " + " | ".join(["hyperparameters", *tasks]) + " |", "|---" * (len(tasks) + 1) + "|"]
    for candidate in dict.fromkeys(result.candidate for result in results):
        of_candidate = [result for result in results if result.candidate == candidate]
        cells = [_cell([one for one in of_candidate if one.task == task]) for task in tasks]
        lines.append("| " + " | ".join([candidate, *cells]) + " |")
    return "\n".join(lines)


def _cell(results: Sequence[Result]) -> str:
    if not results:
        return ""
    loss = statistics.mean(result.valid_loss for result in results)
    right, asked = (sum(getattr(one, name) for one in results) for name in ("right", "asked"))
    return f"{loss:.3f}, {right} of {asked}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
