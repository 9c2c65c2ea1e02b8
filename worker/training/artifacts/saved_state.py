"""The saved state of a job, from which another process resumes it bit for bit.

It has no random state: random numbers and the order of the data are functions of seed and step
(`worker.training.model.randomness`).

The log-probabilities by the reference of preference tuning are in every state: eight bytes for a
pair. A resumed job cannot compute them again, because it has no adapter but that which it trains.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from app.core.job.artifacts import NUMERICS_VERSION, STATE_NUMBERS_NAME, STATE_TENSORS_NAME
from app.core.job.child.job_spec import RESUME_NAME, ComputeSettings, JobSpec
from app.core.job.frozen import Frozen
from app.core.manifest import ManifestError, atomic_directory, verify
from worker.training.failures import is_out_of_memory
from worker.training.step.step import BestAdapter
from worker.training.step.trainer import Progress, Trainer

_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
_REFERENCE = "reference."
"""What the name of a tensor of a reference begins with. The digest of its dataset follows."""


class UnresumableError(Exception):
    """A saved state cannot be resumed: it is damaged, or of another job, step or version."""


class _Best(Frozen):
    """The best adapter so far, without its weights."""

    step: int
    loss: float
    failures: int


class _Version(BaseModel):
    """The one field that a state of any version has."""

    numerics: int = 1
    """Numerics version of the code that saved the state. The first version did not write it."""


class _Numbers(Frozen):
    numerics: int
    progress: Progress
    compute: ComputeSettings
    """The choices of the job's first attempt."""
    data_sha256: str
    """Digest of all tokens of the job, and of which of them are learned."""
    best: _Best | None = None
    """None if the best adapter is not followed, or there was no evaluation."""

    @classmethod
    def read(cls, directory: Path) -> "_Numbers":
        """Read the numbers of a saved state of this version.

        Raises:
            UnresumableError: the state is of another version.
        """
        content = (directory / STATE_NUMBERS_NAME).read_bytes()
        version = _Version.model_validate_json(content).numerics
        if version != NUMERICS_VERSION:
            raise UnresumableError(
                f"It was saved by numerics version {version}, and this release of Tunery computes "
                f"with version {NUMERICS_VERSION}. An adapter must not mix the two."
            )
        return cls.model_validate_json(content)


def write_state(
    directory: Path,
    *,
    spec: JobSpec,
    trainer: Trainer,
    best: BestAdapter | None,
    data_sha256: str,
) -> None:
    """Write everything that an attempt needs to resume with the next step."""
    parameters = _trainable(trainer.model)
    tensors = {f"adapter.{name}": weights.detach() for name, weights in parameters.items()}
    for name, weights in parameters.items():
        moments: dict[str, Tensor] = trainer.optimizer.state[weights]
        tensors |= {f"{kind}.{name}": moments[kind] for kind in _ADAMW_STATE}
    tensors |= {_REFERENCE + digest: scores for digest, scores in trainer.references.items()}
    evaluated = None
    if best is not None and best.step > 0:
        tensors |= {f"best.{n}": w for n, w in zip(parameters, best.weights, strict=True)}
        evaluated = _Best(step=best.step, loss=best.loss, failures=best.failures)
    numbers = _Numbers(
        numerics=NUMERICS_VERSION,
        progress=trainer.progress,
        compute=spec.compute,
        data_sha256=data_sha256,
        best=evaluated,
    )
    save_file(tensors, directory / STATE_TENSORS_NAME)
    (directory / STATE_NUMBERS_NAME).write_text(numbers.model_dump_json() + "\n", encoding="utf-8")


def compute_settings(directory: Path, spec: JobSpec) -> ComputeSettings:
    """The choices that are already made on how to compute the job in `directory`.

    A resumed job keeps the choices of its first attempt, unless it is planned again.

    Raises:
        UnresumableError: the saved state does not say, or is of another version.
    """
    if spec.resume_step is None:
        return spec.compute
    with _refusing():
        saved = _Numbers.read(directory / RESUME_NAME).compute
        if spec.is_replanned:
            return spec.compute
        # Only this choice changes no bit of the result, and less memory may be free now.
        update = {"gradient_checkpointing": spec.compute.gradient_checkpointing}
        return saved.model_copy(update=update)


def load_state(
    directory: Path,
    spec: JobSpec,
    *,
    trainer: Trainer,
    best: BestAdapter | None,
    data_sha256: str,
) -> None:
    """Restore a job as it was when the state in `directory` was saved.

    Args:
        directory: the saved state of step `spec.resume_step`.
        spec: the job.
        trainer: trainer of this job, before its first step.
        best: best adapter of this job, before its first evaluation.
        data_sha256: digest of the tokens of this job.

    Raises:
        UnresumableError: the state is damaged, or of another job, step, version or data.
    """
    with _refusing():
        _check(directory, spec)
        if _Numbers.read(directory).data_sha256 != data_sha256:
            raise UnresumableError(
                "The data became other tokens than in the attempt that saved it. An adapter must "
                "not mix the two."
            )
        _load_state(directory, trainer=trainer, best=best)


@contextmanager
def _refusing() -> Generator[None]:
    """Turn every error of a saved state into an UnresumableError."""
    try:
        yield
    except UnresumableError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UnresumableError(f"{type(error).__name__}: {error}") from error


def _load_state(directory: Path, *, trainer: Trainer, best: BestAdapter | None) -> None:
    numbers = _Numbers.read(directory)
    parameters = _trainable(trainer.model)
    with safe_open(directory / STATE_TENSORS_NAME, framework="pt") as stored, torch.no_grad():

        def load(kind: str, name: str) -> Tensor:
            """A tensor on its parameter's device. It is a copy, because the file may be mapped."""
            return stored.get_tensor(f"{kind}.{name}").to(parameters[name].device, copy=True)

        for name, weights in parameters.items():
            weights.copy_(load("adapter", name))
        moments = {
            i: {kind: load(kind, name) for kind in _ADAMW_STATE}
            for i, name in enumerate(_names_in_optimizer(trainer.optimizer, parameters))
        }
        if best is not None and numbers.best is not None:
            best.weights = [load("best", name) for name in parameters]
            best.step, best.loss = numbers.best.step, numbers.best.loss
            best.failures = numbers.best.failures
        trainer.references = {
            name.removeprefix(_REFERENCE): stored.get_tensor(name).clone()
            for name in cast("list[str]", stored.keys())
            if name.startswith(_REFERENCE)
        }
    settings: Any = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": settings})
    trainer.resume(numbers.progress)


def _names_in_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]
) -> list[str]:
    """Names of the parameters in the order of the optimizer, which may have them in groups."""
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    groups: list[dict[str, Any]] = optimizer.param_groups
    return [name_of[id(parameter)] for group in groups for parameter in group["params"]]


def _check(directory: Path, spec: JobSpec) -> None:
    """Check that the state is whole and is that of this job and step.

    Raises:
        ManifestError: it is not.
    """
    manifest = verify(directory)
    job_id = spec.resume_job_id or spec.job_id
    if (manifest.job_id, manifest.step) != (job_id, spec.resume_step):
        raise ManifestError(
            f"it is the state of step {manifest.step} of {manifest.job_id}, "
            f"not of step {spec.resume_step} of {job_id}"
        )


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the order of `trainable_parameters`."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class StateSaver:
    """Saves the states of a job, and knows when the next is due.

    It never deletes a state: the parent process may be copying it, and deletes it afterwards.
    """

    def __init__(
        self,
        output: Path,
        spec: JobSpec,
        *,
        trainer: Trainer,
        best: BestAdapter | None,
        data_sha256: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The first interval begins now. The state that a job resumes from counts as saved.

        Args:
            output: directory of the states, each of which is named by its step.
            spec: the job.
            trainer: the trainer to save.
            best: the best adapter to save.
            data_sha256: digest of the tokens of the job.
            clock: a monotonic clock, in seconds.
        """
        self._output = output
        self._spec = spec
        self._trainer = trainer
        self._best = best
        self._data_sha256 = data_sha256
        self._clock = clock
        self._saved_step = trainer.progress.step
        self._saved_s = clock()

    @property
    def is_due(self) -> bool:
        """Whether the interval since the last save has passed."""
        return self._clock() - self._saved_s >= self._spec.save_interval_s

    @property
    def is_up_to_date(self) -> bool:
        """Whether no step was taken since the last save."""
        return self._saved_step == self._trainer.progress.step

    def save(self) -> Path:
        """Save the state after the last step. Returns its directory."""
        step = self._trainer.progress.step
        target = self._output / f"resume-{step}"
        with atomic_directory(target, step, self._spec) as staging:
            write_state(
                staging,
                spec=self._spec,
                trainer=self._trainer,
                best=self._best,
                data_sha256=self._data_sha256,
            )
        self._saved_step = step
        self._saved_s = self._clock()
        return target
