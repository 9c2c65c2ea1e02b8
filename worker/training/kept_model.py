"""The base model that jobs find in memory, since they are forked from a process that has loaded it.

It is never trained there, so each job gets it as it came from the disk: what a job changes is its
own copy of the pages. Nothing here may start a thread, which a forked process would lack.
"""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.core.job.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    MACHINE_CACHE_NAME,
    JobSpec,
)
from worker.training.artifacts.saved_state import asked_compute
from worker.training.compute.choices import DTYPES, choose_device, choose_dtype
from worker.training.compute.cpu_speed import read_or_measure
from worker.training.compute.free_memory import anonymous_memory, free_memory
from worker.training.compute.memory import Model
from worker.training.model.base_model import Loaders, load_base_model, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """A base model on the disk. Another one under the same path differs in a file's identity."""

    directory: Path
    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, directory: Path) -> "_Source":
        real = directory.resolve()
        stats = ((path.name, path.stat()) for path in sorted(real.iterdir()))
        files = tuple((name, it.st_ino, it.st_size, it.st_mtime_ns) for name, it in stats)
        return cls(real, files)


@dataclass(frozen=True, slots=True)
class _Kept:
    source: _Source
    sha256: str
    """Of the `BaseModelRef` it was loaded for."""
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    bytes: int
    """That loading took and that are not on the disk as well."""


class KeptModel:
    """At most one base model. A job whose own is another one loads that."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    @property
    def loaders(self) -> Loaders:
        return Loaders(self._load_tokenizer, self._load_base_model, self._bytes_in_memory)

    def keep(self, directory: Path) -> None:
        """Load the base model of the job in this directory, and let go of any other.

        One that cannot be loaded is left to the job, which says so to its user.
        """
        torch.set_num_threads(1)
        try:
            spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
            source = _Source.of(directory / BASE_MODEL_NAME)
            speeds = read_or_measure(directory / MACHINE_CACHE_NAME)
            asked = asked_compute(directory, spec)
            dtype = DTYPES[choose_dtype(asked, choose_device(asked), speeds)]
            wanted = (source, spec.base_model.sha256, dtype)
            kept = self._kept
            if kept is not None and (kept.source, kept.sha256, kept.dtype) == wanted:
                return
            kept = self._kept = None
            gc.unfreeze()
            gc.collect()
            transformers_logging.disable_progress_bar()  # a thread would watch it
            if Model.read(source.directory).parameters * dtype.itemsize > free_memory():
                return
            tokenizer = load_tokenizer(source.directory)
            before = anonymous_memory()
            model = load_base_model(source.directory, dtype)
            loaded = _Kept(*wanted, tokenizer, model, max(0, anonymous_memory() - before))
            if _Source.of(source.directory) == source:
                self._kept = loaded
        except Exception:
            logger.exception("the base model cannot be kept")
        gc.collect()
        gc.freeze()  # or each child would copy these pages as soon as it looks for garbage

    def _load_tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        kept = self._find(directory)
        return load_tokenizer(directory) if kept is None else kept.tokenizer

    def _load_base_model(self, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
        kept = self._find(directory)
        if kept is None or kept.dtype != dtype:
            return load_base_model(directory, dtype)
        self._kept = None  # whoever asks again gets a fresh one, not one that was trained
        return kept.model

    def _bytes_in_memory(self, directory: Path, dtype: torch.dtype) -> int:
        kept = self._find(directory)
        return 0 if kept is None or kept.dtype != dtype else kept.bytes

    def _find(self, directory: Path) -> _Kept | None:
        is_same = self._kept is not None and self._kept.source == _Source.of(directory)
        return self._kept if is_same else None


kept_model = KeptModel()
"""Of this process."""
