"""Directories that are whole or not there: checkpoints and saved states, each with its manifest.

They are written under another name and synced, and only then get their own.
"""

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.core import durable
from app.core.job.training_config import JobSpec
from app.core.manifest import MANIFEST_NAME, Manifest, describe_files

_LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "numpy")


def save_directory(
    target: Path, step: int, spec: JobSpec, *, write_files: Callable[[Path], None]
) -> None:
    """Publish what `write_files` puts into an empty directory as `target`.

    A power cut at any moment leaves either nothing of that name or all of it: every file reaches
    the disk before the manifest that lists it, and the directory before its name. After an error
    the unfinished directory is removed, so that a full disk does not become fuller.
    """
    staging = target.with_name(f".tmp-{target.name}")
    durable.make_directory(target.parent)
    staging.mkdir()
    try:
        _fill(staging, step, spec, write_files)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    durable.sync(target.parent)


def _fill(staging: Path, step: int, spec: JobSpec, write_files: Callable[[Path], None]) -> None:
    write_files(staging)
    for path in staging.iterdir():
        durable.sync(path)
    manifest = Manifest(
        job_id=spec.job_id,
        attempt=spec.attempt,
        step=step,
        files=describe_files(staging),
        provenance=_describe_provenance(spec),
    )
    manifest_path = staging / MANIFEST_NAME
    manifest_path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    durable.sync(manifest_path)
    durable.sync(staging)


def _describe_provenance(spec: JobSpec) -> dict[str, Any]:
    """Model, data, settings, software and computation: all that is needed to make it again."""
    return {
        "fine_tuned_model": spec.fine_tuned_model,
        "base_model": spec.base_model.model_dump(),
        "training_file": spec.training_file.model_dump(),
        "validation_file": spec.validation_file and spec.validation_file.model_dump(),
        "config": spec.config.model_dump(mode="json"),
        "seed": spec.config.seed,
        "compute": spec.compute.model_dump(),
        "threads": spec.threads,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
