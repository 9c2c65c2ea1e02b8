"""Checks the data of one job before it trains: tokenizes it, and reports what training would do."""

import shutil
from pathlib import Path

from app.core.job.training_config import BASE_MODEL_NAME, JOB_SPEC_NAME, OUTPUT_NAME, JobSpec
from app.core.job.training_events import Checked
from app.core.manifest import atomic_directory
from worker.training.failures import TrainingFailedError, last_event_after
from worker.training.model.base_model import ModelLoader
from worker.training.preparation.tokenized_job import TokenizedJob, tokenize_job
from worker.training.training_loop import Report


def check_data(directory: Path, report: Report, *, loader: ModelLoader | None = None) -> None:
    """Check the data of the job in `directory`.

    The last event is `Checked`, `Failed` or `OutOfSpace`. Output of an earlier run in the same
    directory is removed first.

    Args:
        directory: a job directory, as `app.core.job.training_config` describes it.
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
        return Checked(report=job.describe(None), error=failure.as_error())
    with atomic_directory(directory / OUTPUT_NAME / "tokens", 0, job.spec) as staging:
        for path in job.directory.iterdir():
            path.rename(staging / path.name)
    return Checked(report=job.describe(data), directory="out/tokens")
