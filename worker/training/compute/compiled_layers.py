"""Which layers earlier jobs of the project have compiled: their code is in the compiler's cache."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import torch

from app.core.job.child.job_spec import DtypeName, JobSpec
from worker.training.model.base_model import ModelShape

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def are_in_cache(spec: JobSpec, base_model: ModelShape, dtype: DtypeName) -> bool:
    """Whether a job with layers like these was trained here to its end."""
    marker = _marker(spec, base_model, dtype)
    return marker is not None and marker.exists()


def remember_compiled(spec: JobSpec, base_model: ModelShape, dtype: DtypeName) -> None:
    """Remember, at the end of a job, that its compiled layers are in the cache."""
    if marker := _marker(spec, base_model, dtype):
        with suppress(OSError):  # the next job is only slower without it
            marker.touch()


def _marker(spec: JobSpec, base_model: ModelShape, dtype: DtypeName) -> Path | None:
    """A file whose name says all that the compiled code depends on. None without a cache."""
    if _VARIABLE not in os.environ:
        return None
    facts = (torch.__version__, dtype, spec.threads, base_model, spec.config.lora)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return Path(os.environ[_VARIABLE]) / f"layers-{digest}"
