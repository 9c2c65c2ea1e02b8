"""`python -m tests.chaos.stand_in_trainer DIR`: keeps every promise of a training child, quickly.

Its adapter is a chain of hashes, one for every step, so a step that is left out, done twice or
taken from another state gives another adapter. It checks for itself that it is alone.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from app.core.job.artifacts import TOKENS_INDEX_NAME
from app.core.job.child.job_spec import (
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    RESUME_NAME,
    TRAINING_DATA_NAME,
    JobSpec,
)
from app.core.job.child.training_events import (
    Checked,
    Checkpointed,
    Finished,
    Noted,
    Saved,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
)
from app.core.job.data_report import DataReport
from app.core.job.loss_log import StepMetrics
from app.core.machine.linux import die_with_parent
from app.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_files,
    describe_inputs,
    verify,
)

STEP_S = 0.01
SAVE_STEPS = 10
REPORT_NAME = "report.json"
"""A report on data, in the directory of `lock_of`. The child cannot import what builds one."""
LOCK_NAME = "lock"
OVERLAP = "Another child of this job is alive."
"""Event of a child that is not alone."""


def lock_of(job_directory: Path) -> Path:
    """A directory with the lock of a job's children. They cannot make it themselves.

    Its name is not that of a job, so that it is no orphan to the janitor.
    """
    return job_directory.parent.with_name(f"alone-{job_directory.parent.name}")


def chain(seed: bytes, steps: int) -> str:
    """The adapter after so many steps on this data."""
    digest = hashlib.sha256(seed).hexdigest()
    for step in range(1, steps + 1):
        digest = next_link(digest, step)
    return digest


def next_link(digest: str, step: int) -> str:
    return hashlib.sha256(f"{digest} {step}".encode()).hexdigest()


def loss_of(digest: str) -> float:
    return 1 + int(digest[:8], 16) / 2**32


class Trainer:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
        self._must_stop = False
        self._total = self._spec.config.max_steps or 1
        data = (directory / TRAINING_DATA_NAME).read_bytes()
        self._digest = hashlib.sha256(data).hexdigest()
        self._first = self._spec.resume_step or 0

    def run(self) -> None:
        if self._spec.task == "check_data":
            self._check_data()
        else:
            self._train()

    def _check_data(self) -> None:
        """Find no fault, and make tokens that nobody reads."""
        report = (lock_of(self._directory) / REPORT_NAME).read_bytes()
        directory = self._write("tokens", 0, {TOKENS_INDEX_NAME: "{}"})
        self._report(Checked(report=DataReport.model_validate_json(report), directory=directory))

    def _train(self) -> None:
        self._claim_to_be_alone()
        if self._first:
            self._resume()
        self._report(Started(total_steps=self._total))
        signal.signal(signal.SIGTERM, self._stop)
        for step in range(self._first + 1, self._total + 1):
            time.sleep(STEP_S)
            self._digest = next_link(self._digest, step)
            self._report(Stepped(metrics=self._metrics(step)))
            is_checkpoint = step % self._spec.config.checkpoint_steps == 0 or step == self._total
            if is_checkpoint:
                state = self._write_adapter(f"resume-{step}", step)
                directory = self._write_adapter(f"step-{step}", step)
                self._report(Checkpointed(step=step, directory=directory, state=state))
            elif step % SAVE_STEPS == 0 or self._must_stop:
                directory = self._write_adapter(f"resume-{step}", step)
                self._report(Saved(step=step, directory=directory))
            if self._must_stop and step < self._total:
                self._report(Stopped(step=step))
                return
        self._report(Finished(step=self._total, trained_tokens=self._total))

    def _stop(self, *_: object) -> None:
        self._must_stop = True

    def _resume(self) -> None:
        state = self._directory / RESUME_NAME
        assert verify(state).step == self._first
        self._digest = (state / "adapter_model.safetensors").read_text()
        rows = (self._directory / LOSS_LOG_NAME).read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, self._first + 1))

    def _metrics(self, step: int) -> StepMetrics:
        return StepMetrics(
            step=step,
            epoch=step / self._total,
            train_loss=loss_of(self._digest),
            train_mean_token_accuracy=0.5,
            learning_rate=1e-4,
            grad_norm=1.0,
            tokens_seen=step,
            elapsed_s=STEP_S * step,
        )

    def _write_adapter(self, name: str, step: int) -> str:
        adapter = {"adapter_model.safetensors": self._digest, "adapter_config.json": "{}"}
        return self._write(name, step, adapter)

    def _write(self, name: str, step: int, files: Mapping[str, str]) -> str:
        target = self._directory / "out" / name
        staging = target.with_name(f".tmp-{name}")
        staging.mkdir(parents=True)
        for file, content in files.items():
            (staging / file).write_text(content)
        manifest = Manifest(
            job_id=self._spec.job_id,
            attempt=self._spec.attempt,
            step=step,
            files=describe_files(staging),
            provenance=describe_inputs(self._spec),
        )
        (staging / MANIFEST_NAME).write_text(manifest.model_dump_json())
        staging.rename(target)
        return f"out/{name}"

    def _claim_to_be_alone(self) -> None:
        """With a lock of its own, which nobody else in the service knows of."""
        own = os.open(lock_of(self._directory) / LOCK_NAME, os.O_RDONLY)
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._report(Noted(message=OVERLAP))

    @staticmethod
    def _report(event: TrainingEvent) -> None:
        print(event.model_dump_json(), flush=True)  # noqa: T201 - what it is for


def preload() -> None:
    """Nothing takes time here."""


def prepare(directory: Path) -> None:
    """Nothing takes time here either."""


def main(directory: Path) -> None:
    die_with_parent(sys.stdout.fileno())
    Trainer(directory).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
