"""Checkpoints and saved states are whole or not there.

They are written aside, synced, and only then given their name.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from app.core import durable
from app.core.job.training_config import JobSpec
from app.core.manifest import MANIFEST_NAME, Manifest, describe_files
from worker.training.artifacts.provenance import describe_provenance


def save_directory(
    target: Path, step: int, spec: JobSpec, *, write_files: Callable[[Path], None]
) -> None:
    """Publish what `write_files` puts into an empty directory as `target`.

    A power cut at any moment leaves either nothing of that name or all of it: every file reaches
    the disk before the manifest that lists it, and the directory before its name. What could not
    be finished is removed, so that a full disk is not left fuller.
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
        provenance=describe_provenance(spec),
    )
    manifest_path = staging / MANIFEST_NAME
    manifest_path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    durable.sync(manifest_path)
    durable.sync(staging)
