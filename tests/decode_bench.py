"""A loop that answers requests without a sampler around it, step by step as a test wants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar, cast

from app.core.job.child.job_spec import ComputeSettings
from app.core.sampling.messages import Ask, Finished, Refused, SamplingParameters, TextPrompt
from worker.sampling.decoding.choice import Choice
from worker.sampling.decoding.decoder import Decoder, Prepared
from worker.sampling.model.runner import Runner
from worker.sampling.serving.batch import Running
from worker.sampling.serving.decode_loop import DecodeLoop
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.options import GRACE_S, ServingOptions
from worker.sampling.serving.requests import Request, Told
from worker.sampling.serving.shelf import PATIENCE_S, LoadedModel, Shelf

RunnerT = TypeVar("RunnerT", bound=Runner)


class Heard:
    """An outlet that keeps what it gets."""

    def __init__(self) -> None:
        self.answers: list[Told] = []

    def send(self, answers: Sequence[Told], *, is_last: bool) -> None:
        del is_last
        self.answers += answers

    @property
    def end(self) -> Told | None:
        return self.answers[-1] if self.answers else None


class DecodeBench(Generic[RunnerT]):
    """A loop with its desk, whose requests come one after the other."""

    def __init__(
        self,
        runner: RunnerT,
        *,
        memory_bytes: int = 10**6,
        grace_s: float = GRACE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        options = ServingOptions(
            mode="idle",
            memory_bytes=memory_bytes,
            queue=9,
            threads=1,
            models=Path("/models"),
            speeds=Path("/speeds"),
            compute=ComputeSettings(),
        )
        self.runner = runner
        self.desk = Desk(queue=9, mode="idle", grace_s=grace_s)
        self.shelf = Shelf(options)
        self.loop = DecodeLoop(self.desk, self.shelf, threads=1, patience_s=patience_s)
        self._model = LoadedModel(0, runner, cast("Decoder", None))

    def submit(
        self,
        prompt: Sequence[int],
        answers: list[Choice],
        *,
        project: str = "a",
        seed: int | None = None,
    ) -> tuple[Request, Heard]:
        """Send a request that is answered from the next step on."""
        ask = Ask(
            project_id=project,
            base_model=Path("/models/tiny"),
            base_model_sha256="b" * 64,
            prompt=TextPrompt(tokens=tuple(prompt)),
            choices=len(answers),
            parameters=SamplingParameters(seed=seed),
        )
        heard = Heard()
        request = Request(ask, (), heard)
        self.desk.submit(request)
        assert self.desk.take(lambda _: True) is request
        self.desk.hand_over(Running(request, self._model, None, Prepared(list(prompt), answers)))
        return request, heard

    def run(self, *heard: Heard) -> None:
        while not all(isinstance(each.end, Finished | Refused) for each in heard):
            self.loop.run_once()
