"""The base model that a process loads before it forks jobs, which then find it in memory.

It is never trained in that process, so each job gets it as it came from the disk: what a job
changes is its own copy of the pages. Nothing here may start a thread: a forked process lacks it.
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
from worker.training.artifacts.saved_state import compute_settings
from worker.training.compute.hardware import anonymous_memory, free_memory, read_or_measure
from worker.training.compute.plan import choose_placement
from worker.training.model.base_model import (
    Loaders,
    ModelShape,
    load_base_model,
    load_tokenizer,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Source:
    """A base model on the disk. Reinstalled under the same path, it has other inodes and times."""

    directory: Path
    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, directory: Path) -> "_Source":
        real = directory.resolve()
        stats = ((path.name, path.stat()) for path in sorted(real.iterdir()))
        files = tuple((name, it.st_ino, it.st_size, it.st_mtime_ns) for name, it in stats)
        return cls(real, files)


@dataclass(frozen=True, slots=True)
class _Loaded:
    source: _Source
    sha256: str
    """Digest of the files, from the `BaseModelRef` of the job it was loaded for."""
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    bytes: int
    """Memory that loading took, beyond what the disk holds as well."""


class PreloadedModel:
    """At most one base model. A job with another base model loads its own."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    @property
    def loaders(self) -> Loaders:
        return Loaders(self._load_tokenizer, self._load_base_model, self._bytes_in_memory)

    def load(self, directory: Path) -> None:
        """Load the base model of the job in this directory, and drop any other.

        If that fails, the job loads the model itself and tells its user what is wrong.
        """
        torch.set_num_threads(1)
        try:
            spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
            source = _Source.of(directory / BASE_MODEL_NAME)
            speeds = read_or_measure(directory / MACHINE_CACHE_NAME)
            dtype = choose_placement(compute_settings(directory, spec), speeds).torch_dtype
            wanted = (source, spec.base_model.sha256, dtype)
            loaded = self._loaded
            if loaded is not None and (loaded.source, loaded.sha256, loaded.dtype) == wanted:
                return
            loaded = self._loaded = None
            gc.unfreeze()
            gc.collect()
            transformers_logging.disable_progress_bar()  # a thread would watch it
            if ModelShape.read(source.directory).parameters * dtype.itemsize > free_memory():
                return
            tokenizer = load_tokenizer(source.directory)
            before = anonymous_memory()
            model = load_base_model(source.directory, dtype)
            loaded = _Loaded(*wanted, tokenizer, model, max(0, anonymous_memory() - before))
            if _Source.of(source.directory) == source:
                self._loaded = loaded
        except Exception:
            logger.exception("the base model cannot be preloaded")
        gc.collect()
        gc.freeze()  # or each child would copy these pages as soon as it looks for garbage

    def _load_tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        loaded = self._find(directory)
        return load_tokenizer(directory) if loaded is None else loaded.tokenizer

    def _load_base_model(self, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
        loaded = self._find(directory)
        if loaded is None or loaded.dtype != dtype:
            return load_base_model(directory, dtype)
        self._loaded = None  # whoever asks again gets a fresh one, not one that was trained
        return loaded.model

    def _bytes_in_memory(self, directory: Path, dtype: torch.dtype) -> int:
        loaded = self._find(directory)
        return 0 if loaded is None or loaded.dtype != dtype else loaded.bytes

    def _find(self, directory: Path) -> _Loaded | None:
        is_same = self._loaded is not None and self._loaded.source == _Source.of(directory)
        return self._loaded if is_same else None


preloaded_model = PreloadedModel()
"""The base model of this process."""
