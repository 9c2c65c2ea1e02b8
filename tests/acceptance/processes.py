"""The service as its users meet it: started from the wheel, and spoken to with the stock client."""

from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from tests.children import find_children
from tests.waiting import wait_until
from tests.wheel import install_wheel
from tunery.local_service import LocalService

JOB_S = 180
ENDED = ("succeeded", "failed", "cancelled")

_SETTINGS = {
    "poll_interval_s": "0.05",
    "training_threads": "1",  # other tests run at the same time, one process a core
    "training_dtype": "float32",  # on every machine, so that figures can be compared
    "install_default_model": "false",
}


class InstalledService(LocalService):
    """`tunery api` and `tunery worker` from a wheel in an environment of its own.

    Args:
        workers: 0 for tests that train nothing: a worker loads torch as soon as it is idle.
        has_sampler: whether models can be asked.
        log_dir: where its processes log; beside the data, and after earlier services, unless given.
        settings: settings by name, without the prefix, as `lease_s="5"`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        workers: int = 1,
        has_sampler: bool = False,
        log_dir: Path | None = None,
        **settings: str,
    ) -> None:
        program = [install_wheel() / "tunery"]
        super().__init__(
            data_dir,
            _SETTINGS | settings,
            workers=workers,
            program=program,
            has_sampler=has_sampler,
            log_dir=log_dir,
        )

    def client(self, *, strict: bool = True, **options: Any) -> openai.OpenAI:
        """The stock client, which is told nothing but where the service is."""
        return openai.OpenAI(
            base_url=self.base_url,
            api_key="unused",
            max_retries=0,
            _strict_response_validation=strict,
            **options,
        )

    def wait_for_end(self, client: openai.OpenAI, job_id: str) -> FineTuningJob:
        """Wait until the job has ended, in whatever way."""

        def look() -> FineTuningJob | None:
            self.check()
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ENDED else None

        return wait_until(look, within_s=JOB_S)

    def find_child(self, job_id: str) -> int | None:
        """Process id of the child that trains this job; None when there is none."""
        return find_children(self.data_dir).get(job_id)
