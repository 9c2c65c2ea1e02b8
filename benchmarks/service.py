"""What the service adds to the training loop: events, metrics, checkpoints, a parent process."""

import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.core.base_models import RECORD_NAME, load_catalogue
from benchmarks.options import Options, open_bench
from benchmarks.real_service import NEW_MODEL_ID, JobTimes, open_service, run_job, write_catalogue
from benchmarks.trainers import tunery
from benchmarks.trainers.task import CHATS_NAME, LEARNING_RATE, LORA, MAX_TOKENS, Run, Task
from worker.model_store.install import install_model

_PASSES = 3
"""Over the examples, so that checkpoints at the ends of epochs are among what is timed."""


def measure_service(options: Options) -> dict[str, Any]:
    """The same job in turn: by the child alone, and through API and worker."""
    first = options.warm_up
    steps = first + _PASSES * options.timed_steps
    alone: list[Run] = []
    through: list[JobTimes] = []
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as name, open_bench(options) as bench:
        installed = find_installed(options.model, Path(name))
        with open_service(Path(name) / "data", installed, options) as service:
            for _ in range(options.rounds):
                with bench.task(steps=steps) as task:
                    alone.append(tunery.train(task, bench.environment))
                    rows = task.data_dir / CHATS_NAME
                    knobs = knobs_of(task)
                    through.append(run_job(service, installed.name, rows, steps=steps, **knobs))
        about_data = bench.about_data
    loops = {
        "bare": [run.ticks[-1].at_s - run.ticks[first - 1].at_s for run in alone],
        "child": [run.more["seen_s"][-1] - run.more["seen_s"][first] for run in alone],
        "service": [times.steps_s[-1] - times.steps_s[first - 1] for times in through],
    }
    bare_s = statistics.median(loops["bare"])
    percent = {kind: 100 * (statistics.median(of) / bare_s - 1) for kind, of in loops.items()}
    print(f"loops of {steps - first} steps, in seconds: {loops}; added, in percent: {percent}")
    return {
        "data": about_data,
        "steps": steps - first,
        "loops_s": loops,
        "percent": percent,
        "to_first_step_s": statistics.median(times.steps_s[0] for times in through),
        "after_last_step_s": statistics.median(
            times.ended_s - times.steps_s[-1] for times in through
        ),
        "jobs": [asdict(times) for times in through],
    }


def knobs_of(task: Task) -> dict[str, Any]:
    """The hyperparameters of `tunery.write_job`, as the API names them."""
    return {
        "batch_size": task.batch_size,
        "learning_rate": LEARNING_RATE,
        "context_length": MAX_TOKENS,
        "lora_r": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": LORA["lora_dropout"],
        "lora_target_modules": LORA["target_modules"],
    } | ({} if task.steps is None else {"max_steps": task.steps})


def find_installed(model: Path, scratch: Path) -> Path:
    """The model where it is installed, or else a copy that is."""
    if (model / RECORD_NAME).exists():
        return model
    write_catalogue(scratch, NEW_MODEL_ID, model)
    catalogue = load_catalogue(scratch)
    entry = catalogue.find(NEW_MODEL_ID)
    assert entry is not None
    install_model(entry, catalogue)
    return catalogue.directory(NEW_MODEL_ID)
