"""A job through the real service, and when its steps were done, seen from outside."""

import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from app.core.base_models import DEFAULT_MODEL_ID
from app.core.job.child.job_spec import LOSS_LOG_NAME
from benchmarks.options import Options
from benchmarks.support.samples import catalogue_entry, write_entries
from benchmarks.trainers.child import ChildFailedError
from tunery.local_service import LocalService

NEW_MODEL_ID = "benchmark"
"""Of a model that is not installed yet."""
_LOOK_S = 0.05
"""The training has no processor to spare: who looks every 10 ms costs it 3 percent."""

_ASK_S = 2.0
_LIMIT_S = 4 * 3600
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobTimes:
    """Seconds since the job was posted."""

    steps_s: list[float]
    """When each line of the loss log was there."""
    ended_s: float
    """When the job was seen to have succeeded: its adapter can be downloaded."""


LINEAR_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The linear layers of the models that are measured."""


def write_catalogue(data_dir: Path, model_id: str, source: Path) -> None:
    """A catalogue with one more entry, for a model in a directory."""
    entry = catalogue_entry(
        model_id,
        source={"kind": "directory", "path": str(source)},
        licence="none",
        context_length=2048,
        target_modules=LINEAR_MODULES,
    )
    write_entries(data_dir, entry)


def open_service(data_dir: Path, installed: Path, options: Options, **more: str) -> LocalService:
    """API and worker with their default settings but for `more`, and one installed base model."""
    write_catalogue(data_dir, installed.name, installed)
    (data_dir / "models").mkdir()
    (data_dir / "models" / installed.name).symlink_to(installed)
    settings = {
        "training_threads": str(options.threads),
        "poll_interval_s": "0.5",
        "install_default_model": "false",
    }
    return LocalService(data_dir, settings | more)


@contextmanager
def serving_default_model(
    model: Path, *, has_sampler: bool = False, **more: str
) -> Generator[tuple[LocalService, httpx.Client]]:
    """A service of its own, with the default model and nothing else, and a client of it.

    Args:
        model: the directory that the default model is installed in. Without it, the program ends.
        has_sampler: whether models can be asked.
        more: settings.
    """
    if not model.is_dir():
        sys.exit(f"There is no base model at {model}. Run: make model")
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name) / "data"
        (data_dir / "models").mkdir(parents=True)
        (data_dir / "models" / DEFAULT_MODEL_ID).symlink_to(model.resolve())
        settings = {
            "min_free_bytes": "0",
            "save_interval_s": "3600",
            "install_default_model": "false",
        }
        with (
            LocalService(data_dir, settings | more, has_sampler=has_sampler) as service,
            httpx.Client(base_url=service.base_url, timeout=60) as client,
        ):
            yield service, client


def run_job(service: LocalService, model: str, rows: Path, *, steps: int, **knobs: Any) -> JobTimes:
    """Upload, post, wait for the end.

    Args:
        model: the id of a base model.
        rows: the training file.
        steps: how many the job has.
        knobs: its hyperparameters.

    Raises:
        ChildFailedError: the job did not succeed.
    """
    with openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0) as client:
        file = client.files.create(file=(rows.name, rows.read_bytes()), purpose="fine-tune")
        began = time.perf_counter()
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=file.id,
            method={"type": "supervised", "supervised": {"hyperparameters": knobs}},  # pyright: ignore[reportArgumentType] - more than OpenAI's
        )
        watch = _Watch(client, job.id, service.data_dir, began)
        return watch.until_end(steps)


class _Watch:
    """Looks at the loss log often, which costs nothing, and asks the API now and then."""

    def __init__(self, client: openai.OpenAI, job_id: str, data_dir: Path, began: float) -> None:
        self._client = client
        self._job_id = job_id
        self._work_dir = data_dir / "work"
        self._began = began
        self._times: list[float] = []
        self._log: Path | None = None
        self._size = 0

    def until_end(self, steps: int) -> JobTimes:
        asked_s = 0.0
        while self._now_s < _LIMIT_S:
            self._look()
            # A request costs the training a little, so they are few before the last step.
            if self._now_s - asked_s > (_ASK_S if len(self._times) < steps else _LOOK_S):
                asked_s = self._now_s
                if self._has_ended():
                    return JobTimes(self._times, self._now_s)
            time.sleep(_LOOK_S)
        raise ChildFailedError(f"The job has not ended in {_LIMIT_S} s.")

    @property
    def _now_s(self) -> float:
        return time.perf_counter() - self._began

    def _look(self) -> None:
        if self._log is None:
            logs = self._work_dir.glob(f"{self._job_id}/*/{LOSS_LOG_NAME}")
            self._log = next(logs, None)
        try:
            if self._log is None or self._log.stat().st_size == self._size:
                return
            content = self._log.read_bytes()
        except FileNotFoundError:
            return  # the job has ended, and so has its directory
        self._size = len(content)
        new = content.count(b"\n") - len(self._times)
        self._times += [self._now_s] * new

    def _has_ended(self) -> bool:
        job = self._client.fine_tuning.jobs.retrieve(self._job_id)
        if job.status in ENDED and job.status != "succeeded":
            raise ChildFailedError(f"The job is {job.status}: {job.error}")
        return job.status == "succeeded"
