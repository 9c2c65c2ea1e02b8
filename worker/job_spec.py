"""What an attempt starts from, and what it tells its training process about it: `job.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.compute_choices import compute_choices, training_memory
from app.core.db.repositories.leases import Lease
from app.core.db.tables import File, SavedState
from app.core.job.child.job_spec import BaseModelRef, DatasetRef, JobSpec, TaskName
from app.core.job.loss_log import StepMetrics
from app.core.job.training_config import TrainingConfig
from app.core.settings import Settings
from worker.sampling.serving.options import GRACE_S

_MEMORY_WAIT_S = GRACE_S + 10.0
"""Seconds after which a sampler in the mode `idle` has surely given its memory to a training. It
notices the training within a second, and the rest is for what it is computing."""


@dataclass(frozen=True, slots=True)
class JobInputs:
    """What the database knows of the things that an attempt starts from."""

    training_file: File
    validation_file: File | None = None
    states: Sequence[SavedState] = ()
    """Saved states of the job, newest first."""
    steps: Sequence[StepMetrics] = ()
    """The loss log, at least up to the newest state."""
    tokens: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    """Blob key, bytes and sha256 of each file of tokens that the data check has made, by name."""
    parent_weights: File | None = None
    """Weights of the adapter that the job continues."""
    others: Mapping[str, TrainingConfig] = field(default_factory=dict[str, TrainingConfig])
    """Hyperparameters of the other jobs for which a check of the data counts, by their ids."""


def build_spec(
    lease: Lease,
    inputs: JobInputs,
    base_model: BaseModelRef,
    state: SavedState | None,
    *,
    settings: Settings,
    task: TaskName,
) -> JobSpec:
    """All that a training process is told besides the files next to it.

    Args:
        lease: the attempt.
        inputs: the data files.
        base_model: the base model.
        state: the saved state to resume from.
        settings: the settings of the service.
        task: what the process has to do.
    """
    plan = lease.plan if task == "train" and not lease.is_replanned else None
    return JobSpec(
        job_id=lease.job_id,
        attempt=lease.attempt,
        task=task,
        fine_tuned_model=lease.fine_tuned_model,
        base_model=base_model,
        parent=lease.parent,
        training_file=_reference(inputs.training_file),
        validation_file=inputs.validation_file and _reference(inputs.validation_file),
        config=lease.config,
        others=dict(inputs.others),
        threads=plan.threads if plan else settings.resolved_training_threads,
        memory_bytes=training_memory(settings),
        memory_wait_s=_MEMORY_WAIT_S if settings.sampling == "idle" else 0.0,
        spare_disk_bytes=settings.min_free_bytes,
        compute=compute_choices(settings),
        is_replanned=lease.is_replanned,
        save_interval_s=settings.save_interval_s,
        resume_step=state and state.step,
        resume_job_id=state and state.saved_by,
    )


def _reference(file: File) -> DatasetRef:
    return DatasetRef(
        file_id=file.id,
        filename=file.filename,
        sha256=file.sha256,
        bytes=file.bytes,
        examples=file.examples or 0,
    )
