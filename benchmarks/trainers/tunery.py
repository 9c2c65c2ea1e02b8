"""Tunery itself: its training child on a job directory. What is known of its insides is here."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    MACHINE_CACHE_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    ComputeSettings,
    DatasetRef,
    DtypeName,
    JobSpec,
)
from app.core.job.child.training_events import (
    Failed,
    Finished,
    Noted,
    Started,
    Stepped,
    parse_event,
)
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DpoSettings, TrainingConfig
from benchmarks.trainers.child import ChildFailedError, run_and_wait
from benchmarks.trainers.conversations import Row
from benchmarks.trainers.task import (
    CHATS_NAME,
    LEARNING_RATE,
    LORA,
    VALIDATION_NAME,
    Run,
    Task,
    Tick,
)

NEVER_S = 1e6


@dataclass(frozen=True, slots=True)
class Piece:
    """A micro-batch, as much of it as its matrix products depend on."""

    tokens: int
    """In its rows, without padding."""
    computed: int
    """The same, but what rows share at their beginnings only once."""
    learned: int
    """Predictions that are computed."""
    tables: Sequence[tuple[int, int]]
    """Queries and keys of each block of attention."""


COMPILED = "compiled"
"""The variant of a task that is computed as a longer one would be."""


def train(task: Task, environment: Mapping[str, str]) -> Run:
    """Run the child as the worker does, and listen.

    A tick's clock is the child's own, `elapsed_s`: the training loop without evaluations and
    checkpoints. `more` has when its parent saw the beginning of the loop and the end of each step,
    and the seconds from the plan, which is told when the model is loaded, to the last step.
    """
    directory = write_job(task)
    ticks: list[Tick] = []
    planned_s: list[float] = []
    seen_s: list[float] = []
    more: dict[str, Any] = {}

    def on_line(line: bytes) -> None:
        event = parse_event(line)
        if isinstance(event, Noted) and event.message.startswith("Training in "):
            planned_s.append(perf_counter())
        elif isinstance(event, Started):
            seen_s.append(perf_counter())
        elif isinstance(event, Stepped):
            seen_s.append(perf_counter())
            ticks.append(Tick(event.metrics.elapsed_s, event.metrics.tokens_seen))
            more["valid_loss"] = event.metrics.valid_loss
        elif isinstance(event, Finished):
            more["adapter"] = str(directory / OUTPUT_NAME / f"step-{event.step}")
        elif isinstance(event, Failed):
            raise ChildFailedError(f"{event.code}: {event.message}")

    command = [sys.executable, "-m", "worker.train", str(directory)]
    wall_s, peak_bytes = run_and_wait(command, task.scratch_dir, environment, on_line)
    if "adapter" not in more:
        raise ChildFailedError("The training child has stopped before its end.")
    more["loop_s"] = seen_s[-1] - planned_s[-1]
    more["seen_s"] = [at_s - seen_s[0] for at_s in seen_s]
    return Run(ticks=ticks, wall_s=wall_s, peak_bytes=peak_bytes, more=more)


def write_job(task: Task) -> Path:
    """Fill a job directory as the worker does."""
    directory = task.scratch_dir / "job"
    directory.mkdir()
    (directory / BASE_MODEL_NAME).symlink_to(task.model_dir.resolve())
    cache = task.scratch_dir.parent / MACHINE_CACHE_NAME  # of all jobs of one benchmark
    cache.mkdir(exist_ok=True)
    (directory / MACHINE_CACHE_NAME).symlink_to(cache)
    spec = JobSpec(
        job_id="ftjob-1",
        attempt=1,
        fine_tuned_model="ft:benchmark",
        base_model=BaseModelRef(
            id="benchmark", repo="us/benchmark", revision=None, licence="none", sha256="0" * 64
        ),
        training_file=_copy(task.data_dir / CHATS_NAME, directory / TRAINING_DATA_NAME),
        validation_file=(
            _copy(task.data_dir / VALIDATION_NAME, directory / VALIDATION_DATA_NAME)
            if task.validate
            else None
        ),
        config=_config(task),
        threads=task.threads,
        compute=ComputeSettings(compile=True if task.variant == COMPILED else None),
        save_interval_s=NEVER_S,
    )
    (directory / JOB_SPEC_NAME).write_text(spec.model_dump_json())
    return directory


def _config(task: Task) -> TrainingConfig:
    return TrainingConfig(
        lora=LoraShape(
            rank=LORA["r"],
            alpha=LORA["lora_alpha"],
            dropout=LORA["lora_dropout"],
            target_modules=tuple(LORA["target_modules"]),
            layers=task.lora_layers,
        ),
        batch_size=task.batch_size,
        learning_rate=LEARNING_RATE,
        max_sequence_tokens=task.max_tokens,
        max_steps=task.steps,
        seed=task.seed,
        dpo=DpoSettings() if task.is_dpo else None,
    )


def _copy(source: Path, target: Path) -> DatasetRef:
    content = source.read_bytes()
    target.write_bytes(content)
    return DatasetRef(
        file_id=f"file-{target.stem}",
        filename=source.name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        examples=content.count(b"\n"),
    )


def order_of_steps(examples: int, task: Task) -> list[list[int]]:
    """Which examples form each of the steps, in turn."""
    # Only here, as the module brings torch along.
    from worker.training.data.batching import shuffled_batches  # noqa: PLC0415

    assert task.steps is not None
    batches = shuffled_batches(examples, task.batch_size, seed=task.seed)
    return [[int(index) for index in batch] for batch in islice(batches, task.steps)]


def read_steps(rows: Sequence[Row], task: Task) -> list[list[Piece]]:
    """For each step, what its micro-batches compute. The dtype is that of `task.variant`."""
    from worker.training.compute.memory import Footprint  # noqa: PLC0415
    from worker.training.model.base_model import ModelShape  # noqa: PLC0415

    dtype = cast("DtypeName", task.variant)
    shape = ModelShape.read(task.model_dir)
    longest = max(len(row.input_ids) for row in rows)
    most = Footprint(shape, _config(task).lora, dtype, "fast", longest).usual_tokens()
    return [
        list(_read_pieces([rows[row] for row in step], task, most))
        for step in _rows_of_steps(len(rows), task)
    ]


def _read_pieces(rows: Sequence[Row], task: Task, most_tokens: int) -> Iterator[Piece]:
    from worker.training.data.batching import collate, cut_rows  # noqa: PLC0415
    from worker.training.data.beginnings import find_owners  # noqa: PLC0415
    from worker.training.data.dataset import IGNORE_INDEX, TokenizedRow  # noqa: PLC0415
    from worker.training.model.packing import pack  # noqa: PLC0415

    tokens = [np.array(row.input_ids) for row in rows]
    for piece in cut_rows(
        tokens,
        rows_per_example=2 if task.is_dpo else 1,
        micro_batch_tokens=most_tokens,
        is_padded=False,
    ):
        read = [
            TokenizedRow(
                tokens[row],
                np.where(
                    np.arange(len(tokens[row])) < rows[row].first_learned, IGNORE_INDEX, tokens[row]
                ),
            )
            for row in piece.rows
        ]
        batch = collate(
            read,
            examples=piece.rows,
            owners=find_owners([one.input_ids for one in read], piece.rows),
            computed_tokens=piece.tokens,
            pad_token_id=0,
        )
        packed = pack(batch)
        yield Piece(
            tokens=sum(batch.lengths),
            computed=piece.tokens,
            learned=len(packed.targets_U),
            tables=[(len(block.bias_CH), block.length) for block in packed.blocks],
        )


def _rows_of_steps(rows: int, task: Task) -> list[list[int]]:
    """Which rows form each of the steps. The two rows of a pair follow each other."""
    if not task.is_dpo:
        return order_of_steps(rows, task)
    pairs = order_of_steps(rows // 2, task)
    return [[row for pair in step for row in (2 * pair, 2 * pair + 1)] for step in pairs]


def seed_adapter(seed: int) -> None:
    """Start the random numbers that a fresh adapter is drawn from."""
    from worker.training.model.randomness import seed_torch  # noqa: PLC0415

    seed_torch(seed, 0)
