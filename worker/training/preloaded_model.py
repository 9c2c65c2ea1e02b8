"""The base model that a process loads before it forks jobs, which then find it in memory.

That process never trains it, so each job gets it as it is on the disk; a job changes its own copy
of the memory pages. Nothing here may start a thread, because a forked process would lack it.
"""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.core.job.child.job_spec import BASE_MODEL_NAME, JOB_SPEC_NAME, MACHINE_CACHE_NAME, JobSpec
from app.core.machine.memory import measure_memory
from worker.training.artifacts.saved_state import compute_settings
from worker.training.compute.hardware import anonymous_memory, read_or_measure
from worker.training.compute.plan import choose_placement
from worker.training.model.base_model import ModelLoader, ModelShape

logger = logging.getLogger(__name__)


Identity = tuple[tuple[Path, int, int, int], ...]


def _identify(directory: Path) -> Identity:
    """The files of a base model. A model that is installed again has other inodes and times."""
    stats = ((path, path.stat()) for path in sorted(directory.resolve().iterdir()))
    return tuple((path, it.st_ino, it.st_size, it.st_mtime_ns) for path, it in stats)


@dataclass(frozen=True, slots=True)
class _Loaded:
    files: Identity
    sha256: str
    """Digest of the files, from the `BaseModelRef` of the job it was loaded for."""
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    bytes: int
    """Memory that loading took and that is not on the disk."""


class PreloadedModel(ModelLoader):
    """At most one base model. A job with another base model loads its own."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def load(self, directory: Path) -> None:
        """Load the base model of the job in this directory, and drop any other.

        If this fails, the job loads the model itself and tells its user what is wrong.
        """
        torch.set_num_threads(1)
        try:
            spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
            base_model = (directory / BASE_MODEL_NAME).resolve()
            speeds = read_or_measure(directory / MACHINE_CACHE_NAME)
            dtype = choose_placement(compute_settings(directory, spec), speeds).torch_dtype
            files, sha256 = _identify(base_model), spec.base_model.sha256
            loaded = self._find(base_model, dtype)
            if loaded is not None and loaded.sha256 == sha256:
                return
            loaded = self._loaded = None
            gc.unfreeze()
            gc.collect()
            transformers_logging.disable_progress_bar()  # a progress bar starts a thread
            if ModelShape.read(base_model).parameters * dtype.itemsize > measure_memory().free:
                return
            tokenizer = super().load_tokenizer(base_model)
            before = anonymous_memory()
            model = super().load_weights(base_model, dtype)
            size = max(0, anonymous_memory() - before)
            if _identify(base_model) == files:
                self._loaded = _Loaded(files, sha256, dtype, tokenizer, model, size)
        except Exception:
            logger.exception("the base model cannot be preloaded")
        gc.collect()
        gc.freeze()  # otherwise each child would copy these pages when it collects garbage

    def load_tokenizer(self, directory: Path) -> PreTrainedTokenizerBase:
        loaded = self._find(directory)
        return loaded.tokenizer if loaded else super().load_tokenizer(directory)

    def load_weights(self, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
        loaded = self._find(directory, dtype)
        if loaded is None:
            return super().load_weights(directory, dtype)
        self._loaded = None  # a second caller gets a new model, not one that was trained
        return loaded.model

    def bytes_in_memory(self, directory: Path, dtype: torch.dtype) -> int:
        loaded = self._find(directory, dtype)
        return loaded.bytes if loaded else 0

    def _find(self, directory: Path, dtype: torch.dtype | None = None) -> _Loaded | None:
        """The base model in memory if it is that of `directory`, in this dtype if one is given."""
        loaded = self._loaded
        if loaded is None or dtype not in (None, loaded.dtype):
            return None
        return loaded if loaded.files == _identify(directory) else None


preloaded_model = PreloadedModel()
"""The base model of this process."""
