"""What requests to a model cost a job that trains on the same machine, and what they get."""

import statistics
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import openai

from app.core.base_models import DEFAULT_MODEL_ID
from benchmarks.polls import (
    JOBS,
    LOOK_S,
    WARM_STEPS,
    start_job,
    steps_per_s,
    trained_steps,
    watch,
)
from benchmarks.real_service import serving_default_model

_TOKENS = 64
_PAUSE_S = 1.0
"""Pause of a client that was refused, in seconds."""


class _Crowd:
    """Clients that ask one after the other until told to stop."""

    def __init__(self, base_url: str) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
        self._is_over = threading.Event()
        self.tokens = 0
        self.refused = 0

    @contextmanager
    def asking(self, clients: int) -> Generator[None]:
        threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        yield
        self._is_over.set()
        for thread in threads:
            thread.join()

    def _run(self, number: int) -> None:
        prompt = f"The number {number} is"
        while not self._is_over.is_set():
            try:
                answer = self._client.completions.create(
                    model=DEFAULT_MODEL_ID, prompt=prompt, max_tokens=_TOKENS
                )
                assert answer.usage is not None
                self.tokens += answer.usage.completion_tokens
            except openai.RateLimitError:
                self.refused += 1
                self._is_over.wait(_PAUSE_S)


def measure(*, model: Path, mode: str, clients: int, seconds: float, rounds: int) -> None:
    """Print how much slower a training is while clients ask, and how many tokens they get."""
    with serving_default_model(model, has_sampler=True, sampling=mode) as (service, client):
        job_id = start_job(client)
        while trained_steps(client, job_id) < WARM_STEPS:
            time.sleep(LOOK_S)
        speeds: list[tuple[float, float]] = []
        for _ in range(rounds):
            alone = watch(client, job_id, seconds=seconds)
            crowd = _Crowd(service.base_url)
            with crowd.asking(clients):
                beside = watch(client, job_id, seconds=seconds)
            speeds.append((steps_per_s(client, job_id, alone), steps_per_s(client, job_id, beside)))
            print(
                f"  steps/s without and with {clients} clients: {speeds[-1][0]:.2f}, "
                f"{speeds[-1][1]:.2f}; {crowd.tokens} tokens, {crowd.refused} refusals",
                flush=True,
            )
        client.post(f"{JOBS}/{job_id}/cancel").raise_for_status()
    slowed = statistics.fmean(1 - with_ / without for without, with_ in speeds)
    print(f"with TUNERY_SAMPLING={mode}, training is slowed by {100 * slowed:.1f} %")
