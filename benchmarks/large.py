"""The reference script's own job: 3 rows, 3 epochs, a model of the shape of Qwen2-1.5B."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.docstrings import choose_examples, write_rows
from benchmarks.machine import trainer_environment
from benchmarks.memory import watch_memory
from benchmarks.options import Options
from benchmarks.real_service import open_service, run_job
from benchmarks.service import find_installed, knobs_of
from benchmarks.trainers.child import run_module
from benchmarks.trainers.task import TEXTS_NAME, Task

_ROWS, _EPOCHS = 3, 3


def compare_large(options: Options) -> dict[str, Any]:
    """The script from its start to its end; Tunery from the request to the adapter."""
    installed = prepare_model(options, "1.5B", layers=options.layers)
    found: dict[str, list[dict[str, float]]] = {"reference": [], "tunery": []}
    run = {
        "reference": lambda directory, task: _run_reference(directory, task, options),
        "tunery": lambda directory, task: _run_tunery(directory, task, installed, options),
    }
    for _ in range(options.rounds):
        for name, run_once in run.items():
            with tempfile.TemporaryDirectory(prefix="tunery-bench-") as scratch:
                directory = Path(scratch)
                task = _write_task(directory, installed, options)
                with watch_memory() as peak:
                    whole_s = run_once(directory, task)
            found[name].append(
                {
                    "whole_s": whole_s,
                    "peak_bytes": peak.all_bytes,
                    "largest_process_bytes": peak.largest_bytes,
                }
            )
            print(f"{name:10} {whole_s:7.1f} s, {peak.all_bytes / 1e9:.2f} GB", flush=True)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    return {"layers": options.layers, "entrants": medians, "runs": found}


def prepare_model(options: Options, shape: str, *, layers: int | None = None) -> Path:
    """A random model, installed; made once and kept in the cache."""
    home = options.cache / f"shape-{shape}-{layers or 'all'}"
    if not (home / "models").exists():
        with tempfile.TemporaryDirectory(dir=_made(options.cache)) as scratch:
            source = Path(scratch) / "random-model"
            command = [sys.executable, "-m", "benchmarks.random_model", shape, str(source)]
            command += [str(options.model), *([str(layers)] if layers else [])]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
            return find_installed(source, home)
    (installed,) = (one for one in (home / "models").iterdir() if one.is_dir())
    return installed


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _write_task(directory: Path, installed: Path, options: Options) -> Task:
    scratch = _made(directory / "scratch")
    rows: list[dict[str, object]] = [
        {"text": f"User: {each.question}\nAssistant: {each.answer}"}
        for each in choose_examples(_ROWS, seed=options.seed)
    ]
    write_rows(_made(directory / "data") / TEXTS_NAME, rows)
    return Task(
        model=str(installed),
        data=str(directory / "data"),
        scratch=str(scratch),
        threads=options.threads,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _run_reference(directory: Path, task: Task, options: Options) -> float:
    environment = trainer_environment(threads=options.threads, isa=options.isa, scratch=directory)
    return run_module("benchmarks.trainers.reference", task, environment).wall_s


def _run_tunery(directory: Path, task: Task, installed: Path, options: Options) -> float:
    steps = -(-_ROWS // options.batch_size) * _EPOCHS
    with open_service(directory / "service", installed, options) as service:
        rows = task.data_dir / TEXTS_NAME
        times = run_job(
            service, installed.name, rows, steps=steps, n_epochs=_EPOCHS, **knobs_of(task)
        )
        return times.ended_s
