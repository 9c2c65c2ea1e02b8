"""Checks the data of one job before it trains: tokenizes it, and reports what training would do."""

import shutil
from pathlib import Path

from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    MACHINE_CACHE_NAME,
    OUTPUT_NAME,
    JobSpec,
)
from app.core.job.child.training_events import Checked
from app.core.job.estimate import Estimate
from app.core.machine.memory import measure_memory
from app.core.manifest import atomic_directory
from worker.training.compute.hardware import Machine, read_or_measure
from worker.training.compute.plan import choose_placement
from worker.training.data.counted_rows import Rows
from worker.training.data.dataset import TokenizedData
from worker.training.estimate import estimate
from worker.training.failures import TrainingFailedError, last_event_after
from worker.training.model.base_model import ModelLoader, ModelShape
from worker.training.preparation.prepared_data import PreparedData
from worker.training.preparation.tokenized_job import TokenizedJob, tokenize_job
from worker.training.training_loop import Report


def check_data(directory: Path, report: Report, *, loader: ModelLoader | None = None) -> None:
    """Check the data of the job in `directory`.

    The last event is `Checked`, `Failed` or `OutOfSpace`. Output of an earlier run in the same
    directory is removed first.

    Args:
        directory: a job directory, as `app.core.job.child.job_spec` describes it.
        report: takes every event as it happens.
        loader: loads the tokenizer; None to load it from the disk.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    shutil.rmtree(directory / OUTPUT_NAME, ignore_errors=True)
    try:
        tokenizer = (loader or ModelLoader()).load_tokenizer(directory / BASE_MODEL_NAME)
        job = tokenize_job(directory, spec, tokenizer)
        report(_check(job, directory, report))
    except Exception as error:
        if (last := last_event_after(error, spec.config)) is None:
            raise
        report(last)


def _check(job: TokenizedJob, directory: Path, report: Report) -> Checked:
    try:
        data = job.open(report)
    except TrainingFailedError as failure:
        return Checked(report=job.describe(), error=failure.as_error())
    with atomic_directory(directory / OUTPUT_NAME / "tokens", 0, job.spec) as staging:
        for path in job.directory.iterdir():
            path.rename(staging / path.name)
    estimated = _estimate(directory, job.spec, data)
    others = {
        job_id: _estimate(directory, job.spec.model_copy(update={"config": config}), data)
        for job_id, config in job.spec.others.items()
    }
    return Checked(
        report=job.describe(data, estimated),
        directory="out/tokens",
        others={job_id: each for job_id, each in others.items() if each is not None},
    )


def _estimate(directory: Path, spec: JobSpec, data: PreparedData) -> Estimate | None:
    """What the training takes. None if it cannot be told without touching a GPU."""
    speeds = read_or_measure(directory / MACHINE_CACHE_NAME)
    try:
        if choose_placement(spec.compute, speeds).device == "cuda":
            return None
    except TrainingFailedError:  # there is no GPU; the training will say so
        return None
    total_bytes = measure_memory().limited_to(spec.memory_bytes).total
    return estimate(
        ModelShape.read(directory / BASE_MODEL_NAME),
        spec.config,
        _rows_of(data.training),
        _rows_of(data.validation) if data.validation is not None else None,
        asked=spec.compute,
        machine=Machine(speeds=speeds, threads=spec.threads, total_bytes=total_bytes),
    )


def _rows_of(data: TokenizedData) -> Rows:
    return Rows(
        lengths=data.lengths,
        count=len(data),
        learned_tokens=int(data.learned.sum()),
        read=lambda row: data.read(row).input_ids,
    )
