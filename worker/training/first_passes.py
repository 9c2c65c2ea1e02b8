"""What is computed once for all examples, before the first step of a job.

A child that is asked to stop meanwhile ends at once: the next one computes the same bits.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from app.core.clock import steady_s
from app.core.job.child.training_events import Noted, TrainingEvent
from worker.training.compute.kept import kept_bytes
from worker.training.compute.plan import ComputePlan
from worker.training.data.dataset import TokenizedData
from worker.training.model.forward import Forward, FusedForward
from worker.training.model.kept_states import KeptStates
from worker.training.step.trainer import StepSchedule, Trainer

_TELL_S = 60.0
"""Shortest time between two messages on the progress of a pass, in seconds."""
_TOLD_PARTS = 10
"""Most messages on the progress of a pass: a child may send only so many in all."""


def keep_outputs(
    trainer: Trainer,
    forward: Forward,
    plan: ComputePlan,
    schedule: StepSchedule,
    datasets: Sequence[TokenizedData],
    *,
    directory: Path,
    spare_bytes: int,
    report: Callable[[TrainingEvent], None],
) -> None:
    """Keep the outputs of the layers below the first adapter on the disk, where that pays.

    Args:
        trainer: reads the data.
        forward: runs the model.
        plan: how the job is computed.
        schedule: the steps of the job.
        datasets: training data, and validation data if there is any.
        directory: where the outputs are kept.
        spare_bytes: space that must stay free on its disk.
        report: takes messages.

    Raises:
        OSError: the disk has too little space, or failed.
    """
    sizes = {
        data: kept_bytes(plan, tokens=int(data.lengths.sum()), passes=passes)
        for data, passes in zip(datasets, schedule.passes, strict=False)
    }
    chosen = [data for data, size in sizes.items() if size > 0]
    if not chosen or not isinstance(forward, FusedForward):
        return
    footprint = plan.footprint
    files = {
        data: KeptStates(
            directory,
            data.lengths,
            width=footprint.model.width,
            dtype=getattr(torch, plan.dtype),
            spare_bytes=spare_bytes,
        )
        for data in chosen
    }
    examples = sum(map(trainer.count, chosen))
    report(
        Noted(
            message=f"Computing {footprint.lower_layers} of {footprint.model.layers} layers only "
            f"once, for {examples:,} examples, because they are below the first adapter. Their "
            f"outputs take {sum(sizes.values()) / 1e6:,.1f} MB on the disk while the job runs."
        )
    )
    tell = _progress("Layers below the first adapter: {} of {} examples", examples, report)
    for data, states in files.items():
        forward.keep(trainer.read_all(data, tell), states, dataset=data.sha256)


def score_references(
    trainer: Trainer, datasets: Sequence[TokenizedData], report: Callable[[TrainingEvent], None]
) -> None:
    """Let the model that the job starts from be the reference of its pairs."""
    pairs = sum(map(trainer.count, datasets))
    report(Noted(message=f"Computing the reference for {pairs:,} pairs, once."))
    tell = _progress("Reference: {} of {} pairs", pairs, report)
    for data in datasets:
        trainer.score_reference(data, tell)


def _progress(
    text: str, total: int, report: Callable[[TrainingEvent], None]
) -> Callable[[int], None]:
    """What takes the number of examples that are done in addition, and tells of them at times."""
    told_s, told, done = steady_s(), 0, 0

    def tell(more: int) -> None:
        nonlocal told_s, told, done
        done += more
        part = done * _TOLD_PARTS // total
        if part > told and steady_s() - told_s >= _TELL_S:
            told_s, told = steady_s(), part
            message = text.format(f"{done:,}", f"{total:,}")
            report(Noted(message=f"{message} ({done / total:.0%})."))

    return tell
