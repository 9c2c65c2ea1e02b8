"""All requests are read together, and what goes wrong with one of them stays with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from app.core.job.training_config import ComputeSettings
from app.core.sampling.messages import Accepted, Ask, Delta, Finished, Refused, TextPrompt
from worker.sampling.decoding.decoder import Decoder, Prepared
from worker.sampling.model.adapter_files import AdapterFiles
from worker.sampling.model.runner import Adapter, Row
from worker.sampling.serving.batch import Running
from worker.sampling.serving.decode_loop import DecodeLoop
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.options import ServingOptions
from worker.sampling.serving.pace import FEWEST
from worker.sampling.serving.requests import Request, Told
from worker.sampling.serving.shelf import LoadedModel, Shelf

BAD = 13
"""A token at which the runner fails."""


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


@dataclass
class CountingCache:
    """Ten bytes a token."""

    length: int = 0

    @property
    def bytes(self) -> int:
        return 10 * self.length

    def fork(self, length: int) -> "CountingCache":
        return CountingCache(length)


@dataclass
class FailingRunner:
    """Reads anything but the bad token. After that, the caches of the batch are of no use."""

    vocabulary: int = 20
    window: int = 1000
    bytes: int = 0
    bytes_per_token: int = 10
    batches: list[list[int]] = field(default_factory=list[list[int]])
    """Number of tokens of each row that was read."""

    def new_cache(self) -> CountingCache:
        return CountingCache()

    def load_adapter(self, files: AdapterFiles) -> Adapter:
        raise NotImplementedError

    def read(self, rows: Sequence[Row]) -> Tensor:
        self.batches.append([len(row.tokens) for row in rows])
        for row in rows:
            cast("CountingCache", row.cache).length += len(row.tokens)
        if any(BAD in row.tokens for row in rows):
            raise RuntimeError("the bad token")
        return torch.zeros(len(rows), self.vocabulary)


@dataclass
class Counting:
    """An answer of a number of tokens."""

    index: int
    left: int

    def take(self, logits_V: Tensor) -> tuple[int | None, list[Delta | Finished]]:  # noqa: N803
        assert len(logits_V)
        self.left -= 1
        if self.left:
            return 1, [Delta(choice=self.index, text="1")]
        return None, [Finished(choice=self.index, reason="stop", tokens=0)]


class Bench:
    """A loop with its desk, whose requests come one after the other."""

    def __init__(self, *, memory_bytes: int = 10**6) -> None:
        options = ServingOptions(
            mode="idle",
            memory_bytes=memory_bytes,
            queue=9,
            threads=1,
            models=Path("/models"),
            speeds=Path("/speeds"),
            compute=ComputeSettings(),
        )
        self.runner = FailingRunner()
        self.desk = Desk(queue=9, mode="idle")
        self.loop = DecodeLoop(self.desk, Shelf(options), threads=1)
        self._model = LoadedModel(0, self.runner, cast("Decoder", None))

    def ask(self, prompt: list[int], *, tokens: int = 3, choices: int = 1) -> tuple[Request, Heard]:
        ask = Ask(
            project_id="a",
            base_model=Path("/models/tiny"),
            base_model_sha256="b" * 64,
            prompt=TextPrompt(tokens=tuple(prompt)),
            choices=choices,
        )
        heard = Heard()
        self.desk.submit(Request(ask, (), heard))
        request = self.desk.take()
        answers: list[Any] = [Counting(index, tokens) for index in range(choices)]
        self.desk.hand_over(Running(request, self._model, None, Prepared(prompt, answers)))
        return request, heard

    def run(self, *heard: Heard) -> None:
        while not all(isinstance(each.end, Finished | Refused) for each in heard):
            self.loop.run_once()


def test_requests_are_read_together_from_the_step_in_which_they_join() -> None:
    bench = Bench()
    _, first = bench.ask([1], tokens=9)
    bench.loop.run_once()
    _, second = bench.ask([1, 2])
    bench.run(first, second)

    assert bench.runner.batches[:3] == [[1], [1, 2], [1, 1]]


def test_a_long_prompt_is_read_in_pieces_between_the_tokens_of_others() -> None:
    bench = Bench()
    _, first = bench.ask([1], tokens=9)
    _, second = bench.ask([2] * 900)
    bench.loop.run_once()
    bench.loop.run_once()

    assert bench.runner.batches[0] == [1, FEWEST]
    assert len(first.answers) == 3
    assert len(second.answers) == 1


def test_answers_to_one_request_share_what_was_read_of_its_prompt() -> None:
    bench = Bench()
    _, heard = bench.ask([1, 2, 3], choices=3)
    bench.loop.run_once()
    bench.loop.run_once()

    assert bench.runner.batches == [[3], [1, 1, 1]]
    assert {each.choice for each in heard.answers if isinstance(each, Delta)} == {0, 1, 2}


def test_a_request_that_fails_does_not_hurt_those_beside_it() -> None:
    bench = Bench()
    _, good = bench.ask([1, 2])
    _, bad = bench.ask([1, BAD])
    bench.run(good, bad)

    assert isinstance(good.end, Finished)
    assert isinstance(bad.end, Refused)
    assert (bad.end.status, bad.end.code) == (500, "sampling_failed")
    assert [each.text for each in good.answers if isinstance(each, Delta)] == ["1", "1"]


def test_a_request_whose_client_has_left_is_not_read_any_more() -> None:
    bench = Bench()
    request, _ = bench.ask([1], tokens=900)
    _, other = bench.ask([1], tokens=5)
    bench.loop.run_once()
    bench.desk.cancel(request)
    bench.run(other)

    assert bench.runner.batches == [[1, 1], *[[1]] * 4]


def test_answers_that_outgrow_the_memory_end_the_newest_request() -> None:
    bench = Bench(memory_bytes=200)
    _, oldest = bench.ask([1] * 5, tokens=8)
    _, newest = bench.ask([1] * 5, tokens=100)
    bench.run(oldest, newest)

    assert isinstance(oldest.end, Finished)
    assert isinstance(newest.end, Refused)
    assert (newest.end.status, newest.end.code) == (503, "sampler_memory")


def test_what_was_read_for_a_project_need_not_be_read_again() -> None:
    bench = Bench()
    _, first = bench.ask([1, 2, 3, 4])
    bench.run(first)
    _, second = bench.ask([1, 2, 3, 5])
    bench.run(second)

    accepted = second.answers[0]
    assert isinstance(accepted, Accepted)
    assert accepted.cached_tokens == 3
