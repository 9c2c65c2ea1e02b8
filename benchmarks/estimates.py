"""Estimates against reality: ten varied jobs, each estimated and then trained by the service."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from benchmarks.docstrings import Example, choose_examples
from benchmarks.memory import watch_memory
from benchmarks.options import Options
from benchmarks.real_service import ENDED, open_service
from benchmarks.service import find_installed
from benchmarks.trainers.child import ChildFailedError
from tunery.local_service import LocalService

_ASK_S = 1.0
_SHORT = 120
"""Characters of an answer in the jobs with short rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    name: str
    rows: int
    validation: int = 0
    is_short: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


_JOBS = (
    _Job(name="one epoch", rows=64),
    _Job(name="one row in a step", rows=48, knobs={"batch_size": 1}),
    _Job(name="16 rows in a step", rows=64, knobs={"batch_size": 16}),
    _Job(
        name="all linear layers",
        rows=48,
        knobs={"lora_r": 16, "lora_target_modules": "all-linear"},
    ),
    _Job(name="short rows, 3 epochs", rows=80, is_short=True, knobs={"n_epochs": 3}),
    _Job(name="validation every 4 steps", rows=32, validation=16, knobs={"eval_steps": 4}),
    _Job(name="context of 128", rows=120, knobs={"context_length": 128}),
    _Job(name="context of 1,024", rows=32, knobs={"context_length": 1024}),
    _Job(name="DoRA", rows=20, knobs={"use_dora": True, "lora_r": 8}),
    _Job(name="compiled", rows=64, settings={"training_compile": "always"}),
)


def measure_estimates(options: Options) -> dict[str, Any]:
    """Estimate and train as many of the jobs as `--jobs` says."""
    with tempfile.TemporaryDirectory(prefix="tunery-bench-") as name:
        scratch = Path(name)
        installed = find_installed(options.model, scratch)
        found: list[dict[str, Any]] = []
        for number, job in enumerate(_JOBS[: options.jobs]):
            home = scratch / f"data-{number}"
            with open_service(home, installed, options, **job.settings) as service:
                found.append(_compare(service, installed.name, job, options))
            print(row(found[-1]), flush=True)
    return {"jobs": found}


def row(found: Mapping[str, Any]) -> str:
    """A job as a row of a table."""
    estimate, seconds = found["estimate"], found["estimate"]["duration"]["seconds"]
    memory = estimate["peak_memory_bytes"]
    cells = [
        found["name"],
        f"{estimate['steps']:,}",
        f"{estimate['tokens']:,}",
        f"{seconds:.0f} s",
        f"{found['seconds']:.0f} s",
        f"{seconds / found['seconds']:.2f}",
        f"{memory / 1e9:.2f} GB",
        f"{found['peak_bytes'] / 1e9:.2f} GB",
        f"{memory / found['peak_bytes']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _compare(service: LocalService, model: str, job: _Job, options: Options) -> dict[str, Any]:
    chosen = choose_examples(job.rows + job.validation, seed=options.seed)
    hyperparameters = {"n_epochs": 1} | dict(job.knobs)
    with openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0) as client:
        body: dict[str, Any] = {
            "model": model,
            "training_file": _upload(client, chosen[: job.rows], job),
            "seed": options.seed,
            "hyperparameters": hyperparameters,
        }
        if job.validation:
            body["validation_file"] = _upload(client, chosen[job.rows :], job)
        estimated: Any = client.post("/fine_tuning/jobs/estimate", cast_to=object, body=body)
        with watch_memory() as peak:
            ended: Any = _train(client, body)
    return {
        "name": job.name,
        "estimate": estimated["estimate"],
        "seconds": ended["finished_at"] - ended["started_at"],
        "peak_bytes": peak.largest_bytes,
    }


def _upload(client: openai.OpenAI, examples: Sequence[Example], job: _Job) -> str:
    lines: list[str] = []
    for example in examples:
        question, answer = example.messages
        if job.is_short:
            answer = answer | {"content": answer["content"][:_SHORT]}
        lines.append(json.dumps({"messages": [question, answer]}) + "\n")
    content = "".join(lines).encode()
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def _train(client: openai.OpenAI, body: Mapping[str, Any]) -> Any:
    job: Any = client.post("/fine_tuning/jobs", cast_to=object, body=body)
    while job["status"] not in ENDED:
        time.sleep(_ASK_S)
        job = client.get(f"/fine_tuning/jobs/{job['id']}", cast_to=object)
    if job["status"] != "succeeded":
        raise ChildFailedError(f"The job is {job['status']}: {job['error']}")
    return job
