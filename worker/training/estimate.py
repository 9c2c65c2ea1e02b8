"""Estimates what a job takes, from the lengths of its rows and the plan by which it would train."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.estimate import Estimate
from app.core.job.training_config import TrainingConfig
from app.core.machine.memory import Memory
from worker.training.compute.cost import Cost, with_uncertainty
from worker.training.compute.hardware import Machine
from worker.training.compute.kept import kept_bytes
from worker.training.compute.memory import gigabytes
from worker.training.compute.plan import (
    COMPILING_S,
    ComputePlan,
    Workload,
    choose_placement,
    make_plan,
)
from worker.training.data.batching import evaluated_together, rows_of, shuffled_batches
from worker.training.data.counted_rows import Rows
from worker.training.data.split import count_held_out
from worker.training.model.base_model import ModelShape
from worker.training.step.trainer import StepSchedule

_STEPS_COUNTED = 400
"""Most steps whose micro-batches are counted. The others are taken to be like them."""
_ROWS_COUNTED = 6400
"""Most rows of these steps, which take half a second to count."""
_FEWEST_STEPS = 4
"""Steps that are counted however many rows they have."""
_ROWS_EVALUATED = 2000
"""Most validation rows whose micro-batches are counted. It is even, for the sake of pairs."""
_START_S = 4.0
"""Seconds from the start of an attempt until its base model is read, and from its last checkpoint
to its end, on a machine with a current processor."""
_READ_PER_S = 5e8
"""Bytes of a base model that are read in a second."""
_TOKENIZED_PER_S = 1e5
"""Tokens that are made of text in a second."""
_SAVING_S = 0.3
"""Seconds that a checkpoint and a saved state take, whatever their size."""
_SAVED_PER_S = 1e8
"""Bytes of checkpoints and saved states that are written and checked in a second."""
_MUCH = 0.2
"""Fraction of the time above which the user is told how to save it."""
_HOW_TO_SAVE = {
    "evaluation": "Evaluations take {:.0%} of the time. A smaller validation file, larger "
    "eval_steps or a lower n_evals would make the job faster.",
    "saving": "Checkpoints take {:.0%} of the time. Larger checkpoint_steps would make the job "
    "faster.",
}
_SHORTEST_CONTEXT = 32
"""Lowest context_length that is proposed, in tokens."""

_MOMENTS = 2
"""Numbers of the optimizer for each parameter of the adapter."""
_FLOAT32_BYTES = 4
_HELD_STATES = 2
"""Saved states of a job that are kept."""

_TEXT_BYTES = 5_000_000
"""Bytes of a checkpoint beside the adapter: tokenizer, tables, chart."""


def estimate(
    base_model: ModelShape,
    config: TrainingConfig,
    training: Rows,
    validation: Rows | None,
    *,
    asked: ComputeSettings,
    machine: Machine,
    jobs: int = 1,
) -> Estimate:
    """Estimate what a job takes if it trains to the end without interruption.

    Args:
        base_model: shape of the base model.
        config: hyperparameters. Its `validation_split` is taken off the training rows here.
        training: rows of the training file.
        validation: rows of the validation file, if there is one.
        asked: choices that the service's settings have made.
        machine: the machine that would train the job.
        jobs: number of jobs that are estimated one after another. With many, fewer steps of each
            are counted.

    Raises:
        TrainingFailedError: `gpu_unavailable`, or `too_few_examples` for the `validation_split`.
    """
    if validation is None and config.validation_split is not None:
        examples = training.count // config.rows_per_example
        held_out = count_held_out(examples, fraction=config.validation_split)
        held_out *= config.rows_per_example
        validation = replace(training, count=held_out)  # chosen at random, so like the rest
        training = replace(training, count=training.count - held_out)
    examples = training.count // config.rows_per_example
    schedule = StepSchedule(config, examples=examples, has_validation=validation is not None)
    job = _Job(base_model, config, training, validation, schedule, asked, machine, jobs)
    return job.estimate()


@dataclass(frozen=True, slots=True)
class _Job:
    base_model: ModelShape
    config: TrainingConfig
    training: Rows
    validation: Rows | None
    schedule: StepSchedule
    asked: ComputeSettings
    machine: Machine
    jobs: int

    def estimate(self) -> Estimate:
        plan = self._plan(self.machine.total_bytes)
        least = self._plan(0)
        parts = {} if plan.device == "cuda" else self._parts(plan)
        return Estimate(
            steps=self.schedule.total_steps,
            examples=self._examples,
            tokens_per_epoch=self.training.tokens,
            tokens=self._tokens,
            learned_tokens=None
            if self.training.learned_tokens is None
            else round(self.training.learned * self.training.tokens),
            duration=with_uncertainty(sum(parts.values())) if parts else None,
            peak_memory_bytes=self._peak_bytes(plan),
            least_memory_bytes=least.peak_bytes,
            disk_bytes=self._disk_bytes(plan),
            compute=plan.settings,
            advice=tuple(self._advice(plan, least, parts)),
        )

    def _plan(self, memory_bytes: int) -> ComputePlan:
        """The plan of the job where there is so much memory, all of it free."""
        placement = choose_placement(self.asked, self.machine.speeds, has_gpu=self.machine.has_gpu)
        work = Workload.of_job(
            self.base_model,
            self.config,
            self.training.lengths,
            total_steps=self.schedule.total_steps,
            threads=self.machine.threads,
        )
        memory = Memory(total=memory_bytes, free=memory_bytes)
        return make_plan(self.asked, placement, self.machine.speeds, work, memory=memory)

    @property
    def _examples(self) -> int:
        return self.training.count // self.config.rows_per_example

    @property
    def _tokens(self) -> int:
        """Tokens that the whole job reads in training."""
        steps_per_epoch = math.ceil(self._examples / self.config.batch_size)
        return round(self.training.tokens * self.schedule.total_steps / steps_per_epoch)

    def _saved_bytes(self, plan: ComputePlan) -> tuple[int, int]:
        """Bytes of a checkpoint and of a saved state."""
        adapter = plan.footprint.trained_parameters * _FLOAT32_BYTES
        copies = 1 + _MOMENTS + (self.config.chooses_best and self.validation is not None)
        return adapter + _TEXT_BYTES, adapter * copies

    def _disk_bytes(self, plan: ComputePlan) -> int:
        checkpoint, state = self._saved_bytes(plan)
        kept = self.schedule.count(self.schedule.is_checkpoint)
        if self.config.keep_checkpoints is not None:
            kept = min(kept, self.config.keep_checkpoints)
        outputs = sum(self._kept_bytes(plan, rows) for rows in self._datasets)
        return kept * checkpoint + _HELD_STATES * state + outputs

    @property
    def _datasets(self) -> list[Rows]:
        return [self.training] if self.validation is None else [self.training, self.validation]

    def _kept_bytes(self, plan: ComputePlan, rows: Rows) -> int:
        """Bytes that the outputs of lower layers take for a dataset, as `kept_bytes` chooses."""
        passes = self.schedule.passes[1 if rows is self.validation else 0]
        return kept_bytes(plan, tokens=rows.tokens, passes=passes)

    def _parts(self, plan: ComputePlan) -> dict[str, float]:
        """Seconds of the job, by what they are spent on."""
        cost = Cost(plan=plan, speeds=self.machine.speeds, threads=self.machine.threads)
        learned = self.training.learned
        is_kept = self._kept_bytes(plan, self.training) > 0
        each = [cost.step(step, learned=learned, is_kept=is_kept) for step in self._steps()]
        steps = sum(each) / len(each) * self.schedule.total_steps
        return {
            "start": self._start_s(plan),
            "training": steps + (COMPILING_S if plan.compile else 0.0),
            "evaluation": self._evaluation_s(cost),
            "first passes": self._first_passes_s(cost),
            "saving": self._saving_s(plan),
        }

    def _start_s(self, plan: ComputePlan) -> float:
        validation_tokens = self.validation.tokens if self.validation else 0
        tokenizing = (self.training.tokens + validation_tokens) / _TOKENIZED_PER_S
        return _START_S + tokenizing + plan.footprint.base_model / _READ_PER_S

    def _steps(self) -> Iterator[list[np.ndarray]]:
        """The rows of each of the first steps. A sample of rows is shuffled as a file is."""
        together, size = self.config.rows_per_example, self.config.batch_size
        examples = len(self.training.lengths) // together
        batches = shuffled_batches(examples, size, seed=self.config.seed)
        most = max(_FEWEST_STEPS, _ROWS_COUNTED // (size * together * self.jobs))
        first = islice(batches, min(self.schedule.total_steps, _STEPS_COUNTED, most))
        return (self.training.read_all(rows_of(each, together)) for each in first)

    def _peak_bytes(self, plan: ComputePlan) -> int:
        """Memory of the largest micro-batch of these steps."""
        shapes = {
            (piece.tokens, max(len(step[row]) for row in piece.rows))
            for step in self._steps()
            for piece in plan.cut(step)
        }
        return max(
            replace(plan.footprint, longest_row=longest).peak(
                tokens, checkpointing=plan.gradient_checkpointing
            )
            for tokens, longest in shapes
        )

    def _evaluation_s(self, cost: Cost) -> float:
        """Seconds of all evaluations, that of the base model included."""
        if self.validation is None:
            return 0.0
        often = 1 + self.schedule.count(self.schedule.is_evaluation)
        return often * self._evaluating_s(cost, self.validation)

    def _first_passes_s(self, cost: Cost) -> float:
        """Seconds in which outputs that are kept are computed, and pairs by the reference."""
        seconds = 0.0
        for rows in self._datasets:
            if self._kept_bytes(cost.plan, rows):
                seconds += self._reading_s(rows, cost.keeping)
            if self.config.has_reference:
                seconds += self._evaluating_s(cost, rows)
        return seconds

    def _evaluating_s(self, cost: Cost, rows: Rows) -> float:
        """Seconds of an evaluation on a whole file."""
        is_kept = self._kept_bytes(cost.plan, rows) > 0
        evaluation = partial(cost.evaluation, learned=rows.learned, is_kept=is_kept)
        return self._reading_s(rows, evaluation)

    def _reading_s(self, rows: Rows, read: Callable[[list[np.ndarray]], float]) -> float:
        """Seconds in which a whole file is read, in rows that are evaluated together."""
        lengths = rows.lengths[: 2 * max(1, _ROWS_EVALUATED // (2 * self.jobs))]
        counted = sum(
            read(rows.read_all(places))
            for places in evaluated_together(lengths, self.config.rows_per_example)
        )
        return counted * rows.count / len(lengths)

    def _saving_s(self, plan: ComputePlan) -> float:
        each = _SAVING_S + sum(self._saved_bytes(plan)) / _SAVED_PER_S
        return each * self.schedule.count(self.schedule.is_checkpoint)

    def _advice(
        self, plan: ComputePlan, least: ComputePlan, parts: dict[str, float]
    ) -> Iterator[str]:
        if least.peak_bytes > self.machine.total_bytes:
            yield from self._what_fits(least)
        elif plan.gradient_checkpointing and self.asked.gradient_checkpointing is None:
            yield (
                "Memory is so short that each layer is computed twice. With a lower "
                "context_length the job would be about a third faster."
            )
        if plan.is_warning:
            yield plan.explanation
        for part, much in parts.items():
            share = much / sum(parts.values())
            if part in _HOW_TO_SAVE and share > _MUCH:
                yield _HOW_TO_SAVE[part].format(share)

    def _what_fits(self, least: ComputePlan) -> Iterator[str]:
        """Which single change would make the job fit into the memory of the machine."""
        total, footprint = self.machine.total_bytes, least.footprint
        tokens = footprint.longest_row
        while tokens > _SHORTEST_CONTEXT:
            tokens //= 2
            shorter = replace(footprint, longest_row=tokens)
            if (
                shorter.peak(shorter.longest_example, checkpointing=least.gradient_checkpointing)
                <= total
            ):
                yield f"It would fit into {gigabytes(total)} with a context_length of {tokens:,}."
                return
        yield (
            f"It does not fit into {gigabytes(total)} with any context_length. Choose a smaller "
            "base model."
        )
