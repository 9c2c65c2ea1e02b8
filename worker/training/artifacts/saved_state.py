"""The state of a job: saved now and then, so that another process goes on as if none had ended.

Random numbers have no part in it: each is a function of the job's seed and of the step it is drawn
in (`worker.training.randomness`), and so is the order of the data.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.job.training_config import RESUME_NAME, ComputeSettings, JobSpec
from app.core.manifest import ManifestError, verify
from worker.training.artifacts.atomic_directory import save_directory
from worker.training.failures import is_out_of_memory
from worker.training.step.evaluate import BestAdapter
from worker.training.step.trainer import Progress, Trainer

_NUMBERS_NAME = "state.json"
_TENSORS_NAME = "state.safetensors"
"""`adapter.NAME`, `best.NAME` and those of AdamW as `exp_avg.NAME`, where NAME is a parameter's."""
_ADAMW_KEEPS = ("step", "exp_avg", "exp_avg_sq")


class UnresumableError(Exception):
    """A state cannot be gone on from: damaged, of something else, or of another version."""


class _Best(BaseModel):
    """A `BestAdapter`, less its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: int
    loss: float
    failures: int


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    progress: Progress
    compute: ComputeSettings
    """As the job's first attempt has chosen."""
    best: _Best | None = None
    """None unless the job may stop early and was evaluated."""


def save_state(target: Path, spec: JobSpec, *, trainer: Trainer, best: BestAdapter | None) -> None:
    """Publish all that is needed to take the next step as `target`, whole or not at all."""
    write_files = partial(_write_state, spec=spec, trainer=trainer, best=best)
    save_directory(target, trainer.progress.step, spec, write_files=write_files)


def _write_state(
    directory: Path, *, spec: JobSpec, trainer: Trainer, best: BestAdapter | None
) -> None:
    parameters = _trainable(trainer.model)
    tensors = {f"adapter.{name}": weights.detach() for name, weights in parameters.items()}
    for name, weights in parameters.items():
        kept: dict[str, Tensor] = trainer.optimizer.state[weights]
        tensors |= {f"{kind}.{name}": kept[kind] for kind in _ADAMW_KEEPS}
    evaluated = None
    if best is not None and best.step > 0:
        tensors |= {f"best.{n}": w for n, w in zip(parameters, best.weights, strict=True)}
        evaluated = _Best(step=best.step, loss=best.loss, failures=best.failures)
    numbers = _Numbers(progress=trainer.progress, compute=spec.compute, best=evaluated)
    save_file(tensors, directory / _TENSORS_NAME)
    (directory / _NUMBERS_NAME).write_text(numbers.model_dump_json() + "\n", encoding="utf-8")


def asked_compute(directory: Path, spec: JobSpec) -> ComputeSettings:
    """How the job in `directory` is to be computed: as its earlier attempts were, if there are any.

    Raises:
        UnresumableError: the state to go on from does not say.
    """
    if spec.resume_step is None:
        return spec.compute
    numbers = directory / RESUME_NAME / _NUMBERS_NAME
    try:
        chosen = _Numbers.model_validate_json(numbers.read_bytes()).compute
        # This alone changes no bit, and memory may be shorter now.
        asked = {"gradient_checkpointing": spec.compute.gradient_checkpointing}
        return chosen.model_copy(update=asked)
    except (OSError, ValidationError) as error:
        raise UnresumableError(f"{type(error).__name__}: {error}") from error


def load_state(
    directory: Path, spec: JobSpec, *, trainer: Trainer, best: BestAdapter | None
) -> None:
    """Put a job where it was when the state in `directory` was saved.

    Args:
        directory: holds the state of step `spec.resume_step`.
        spec: the job.
        trainer: of this job, as it is before the first step.
        best: as it is before the first evaluation.

    Raises:
        UnresumableError: the state is damaged, of another job or step, or of another version.
    """
    try:
        _check(directory, spec)
        _load_state(directory, trainer=trainer, best=best)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnresumableError(f"{type(error).__name__}: {error}") from error


def _load_state(directory: Path, *, trainer: Trainer, best: BestAdapter | None) -> None:
    numbers = _Numbers.model_validate_json((directory / _NUMBERS_NAME).read_bytes())
    parameters = _trainable(trainer.model)
    with safe_open(directory / _TENSORS_NAME, framework="pt") as stored, torch.no_grad():

        def load(kind: str, name: str) -> Tensor:
            """In memory of its own, where the file may be mapped, and beside its parameter."""
            return stored.get_tensor(f"{kind}.{name}").to(parameters[name].device, copy=True)

        for name, weights in parameters.items():
            weights.copy_(load("adapter", name))
        kept = {
            i: {kind: load(kind, name) for kind in _ADAMW_KEEPS}
            for i, name in enumerate(parameters)
        }
        if best is not None and numbers.best is not None:
            best.weights = [load("best", name) for name in parameters]
            best.step, best.loss = numbers.best.step, numbers.best.loss
            best.failures = numbers.best.failures
    settings: Any = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": kept, "param_groups": settings})
    trainer.go_on_from(numbers.progress)


def _check(directory: Path, spec: JobSpec) -> None:
    """Raises ManifestError, with what is wrong."""
    manifest = verify(directory)
    job_id = spec.resume_job_id or spec.job_id
    if (manifest.job_id, manifest.step) != (job_id, spec.resume_step):
        raise ManifestError(
            f"it is the state of step {manifest.step} of {manifest.job_id}, "
            f"not of step {spec.resume_step} of {job_id}"
        )


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, in the order of `trainable_parameters`."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class StateSaver:
    """Saves the states of a job, and knows when the next is due.

    None is ever deleted here: whoever was told of it may be copying it, and deletes it then.
    """

    def __init__(
        self,
        output: Path,
        spec: JobSpec,
        *,
        trainer: Trainer,
        best: BestAdapter | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The first interval begins now; what the job goes on from counts as saved.

        Args:
            output: where states are put, under the names of their steps.
            spec: the job.
            trainer: what is saved.
            best: saved with it.
            clock: seconds that only ever pass.
        """
        self._output = output
        self._spec = spec
        self._trainer = trainer
        self._best = best
        self._clock = clock
        self._saved_step = trainer.progress.step
        self._saved_s = clock()

    @property
    def is_due(self) -> bool:
        """Whether so much time has passed that the next state should be saved."""
        return self._clock() - self._saved_s >= self._spec.save_interval_s

    @property
    def is_up_to_date(self) -> bool:
        """Whether no step was taken since the last save."""
        return self._saved_step == self._trainer.progress.step

    def save(self) -> Path:
        """Save the state after the last step. Returns its directory."""
        step = self._trainer.progress.step
        target = self._output / f"resume-{step}"
        save_state(target, self._spec, trainer=self._trainer, best=self._best)
        self._saved_step = step
        self._saved_s = self._clock()
        return target
