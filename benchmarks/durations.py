"""`docs/duration.md`: how long jobs take, by the estimate that the service gives.

    python -m benchmarks.durations     # writes the page again

The speeds are those that `docs/benchmarks.md` has of two kinds of processors. Nothing is trained.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.estimate import Estimate
from app.core.job.training_config import TrainingConfig
from benchmarks.random_model import SHAPES, build_empty
from tunery.client.screen.terminal import duration
from worker.training.compute.hardware import Machine, Speeds
from worker.training.data.counted_rows import Rows
from worker.training.estimate import estimate
from worker.training.model.base_model import ModelShape

PAGE = Path(__file__).parents[1] / "docs" / "duration.md"
_GIB = 2**30
_HOUR_S = 3600
_MACHINES = {
    "2 cores with AVX2": Machine(
        speeds=Speeds(float32=100, bfloat16=10), threads=2, total_bytes=64 * _GIB, has_gpu=False
    ),
    "2 cores with AVX-512 and bfloat16": Machine(
        speeds=Speeds(float32=85, bfloat16=195), threads=2, total_bytes=64 * _GIB, has_gpu=False
    ),
}
"""Speeds of one thread."""
_ROWS = 1000
_LENGTHS = (64, 256, 1024)

_TEXT = """# How long will my job take

`python -m benchmarks.durations` writes this page. Do not edit it.

Ask the service. It knows your data and your machine, and answers before anything is trained:

- on the page of new jobs, below the settings;
- `tunery estimate job.toml` on the command line, which shows time, memory and disk;
- `POST /v1/fine_tuning/jobs/estimate` with the body of a new job ([API](api.md#estimating-a-job)).

[What a job will take](jobs.md#what-a-job-will-take) says what is counted, and
[benchmarks](benchmarks.md#estimates-and-what-the-jobs-took) compares the estimates of ten jobs with
what these took. On two cores with AVX-512, durations were right within a quarter. On a virtual
machine with AMX, jobs took twice as long as estimated: two threads together multiplied matrices no
faster than one did alone, and the estimate does not know that.

## For orientation

One epoch over {rows:,} examples, batch size 4, rank 64 on `q_proj` and `v_proj`, by the same
estimate. A token is about four letters of English. The rows are taken to have nothing in common,
and the layers are not compiled. Jobs of more than a few minutes compile them, and are a tenth to a
fifth faster.

{tables}
## What changes it

- **More data, more epochs**: the time grows in proportion. The start and the end take about ten
  seconds, more for large base models.
- **More cores**: the estimate takes the time to shrink in proportion. Only machines with two cores
  were measured.
- **Rows that begin alike**, for example with one system prompt, are faster: the prompt of a step is
  computed once. With a prompt of 80 words and short answers a job takes about a third of the time
  at batch size 16.
- **DPO** trains on two answers for each example, and the base model reads all of them once before.
  The prompt of a pair is computed once.
- **`lora_layers`** trains only some layers. With the last half of them, a step takes about a
  quarter less time. The result is another one.
- **A validation file** is read at each evaluation, at about a third of the time of training on it.
- **Too little memory** makes each layer be computed twice, which takes about a third more time.
"""


def write_page() -> str:
    """The text of the page."""
    return _TEXT.format(rows=_ROWS, tables="\n".join(_tables()))


def _tables() -> Iterator[str]:
    shapes = {size: _shape_of(build()) for size, build in SHAPES.items()}
    for name, machine in _MACHINES.items():
        yield f"### {name}\n"
        lengths = [f"{length:,} tokens" for length in _LENGTHS]
        yield f"| base model | {' | '.join(lengths)} | memory |"
        yield "|---" * (len(lengths) + 2) + "|"
        for size, shape in shapes.items():
            found = [_estimate(shape, length, machine) for length in _LENGTHS]
            times = [_tell(one.duration.seconds) for one in found if one.duration is not None]
            memory = max(one.peak_memory_bytes for one in found) / 1e9
            yield f"| {size} | {' | '.join(times)} | {memory:.1f} GB |"
        yield ""


def _tell(seconds: float) -> str:
    return duration(seconds, units=2 if seconds > _HOUR_S else 1)


def _estimate(shape: ModelShape, length: int, machine: Machine) -> Estimate:
    lengths = np.full(_ROWS, length)
    return estimate(
        shape,
        TrainingConfig(seed=0, epochs=1, max_sequence_tokens=max(_LENGTHS)),
        Rows(lengths=lengths, count=_ROWS),
        None,
        asked=ComputeSettings(compile=False),  # whatever compilers this machine has
        machine=machine,
    )


def _shape_of(config: Any) -> ModelShape:
    parameters = sum(weights.numel() for weights in build_empty(config).parameters())
    return ModelShape.of(config, parameters=parameters)


if __name__ == "__main__":
    PAGE.write_text(write_page(), "utf-8")
    sys.exit(0)
