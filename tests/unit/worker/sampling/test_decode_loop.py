"""All requests are read together, and what goes wrong with one of them stays with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor

from app.core.sampling.messages import Accepted, Delta, Finished, Refused
from tests.decode_bench import DecodeBench, Heard
from tests.pulses import would_be_noticed
from worker.sampling.decoding.refusals import RefusedError
from worker.sampling.model.adapter_files import AdapterFiles
from worker.sampling.model.runner import Adapter, Row
from worker.sampling.serving.pace import FEWEST, MOST
from worker.sampling.serving.requests import Request

if TYPE_CHECKING:
    from worker.sampling.decoding.choice import Choice

BAD = 13
"""A token at which the runner fails."""


@dataclass
class CountingCache:
    """Ten bytes a token."""

    length: int = 0
    can_be_copied: bool = True

    @property
    def bytes(self) -> int:
        return 10 * self.length

    def fork(self, length: int) -> "CountingCache":
        if not self.can_be_copied:
            raise MemoryError
        return CountingCache(length)


@dataclass
class FailingRunner:
    """Reads anything but the bad token. After that, the caches of the batch are of no use."""

    vocabulary: int = 20
    window: int = 1000
    bytes: int = 0
    bytes_per_token: int = 10
    can_copy: bool = True
    error: type[BaseException] = RuntimeError
    batches: list[list[int]] = field(default_factory=list[list[int]])
    """Number of tokens of each row that was read."""

    def new_cache(self) -> CountingCache:
        return CountingCache(can_be_copied=self.can_copy)

    def load_adapter(self, files: AdapterFiles) -> Adapter:
        raise AssertionError(f"no request here has an adapter: {files}")

    def read(self, rows: Sequence[Row]) -> Tensor:
        self.batches.append([len(row.tokens) for row in rows])
        for row in rows:
            cast("CountingCache", row.cache).length += len(row.tokens)
        if any(BAD in row.tokens for row in rows):
            raise self.error("the bad token")
        return torch.zeros(len(rows), self.vocabulary)


@dataclass
class Counting:
    """An answer of a number of tokens. With none, it fails at its first one."""

    index: int
    left: int

    def take(self, logits_V: Tensor) -> tuple[int | None, list[Delta | Finished]]:  # noqa: N803
        assert len(logits_V)
        if not self.left:
            raise RefusedError("no_token", "No token fits.")
        self.left -= 1
        if self.left:
            return 1, [Delta(choice=self.index, text="1")]
        return None, [Finished(choice=self.index, reason="stop", tokens=0)]


class Bench(DecodeBench[FailingRunner]):
    def __init__(self, **options: Any) -> None:
        super().__init__(FailingRunner(), **options)

    def ask(
        self, prompt: list[int], *, tokens: int = 3, choices: int = 1, project: str = "a"
    ) -> tuple[Request, Heard]:
        answers: list[Choice] = [Counting(index, tokens) for index in range(choices)]
        return self.submit(prompt, answers, project=project)


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
    assert not second.answers


def test_answers_to_one_request_share_what_was_read_of_its_prompt() -> None:
    bench = Bench()
    _, heard = bench.ask([1, 2, 3], choices=3)
    bench.loop.run_once()
    bench.loop.run_once()

    assert bench.runner.batches == [[3], [1, 1, 1]]
    assert {each.choice for each in heard.answers if isinstance(each, Delta)} == {0, 1, 2}


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [RuntimeError, Panic])
def test_a_request_that_fails_does_not_hurt_those_beside_it(error: type[BaseException]) -> None:
    bench = Bench()
    bench.runner.error = error
    _, good = bench.ask([1, 2])
    _, bad = bench.ask([1, BAD])
    bench.run(good, bad)

    assert isinstance(good.end, Finished)
    assert code_of(bad) == (500, "sampling_failed")
    assert [each.text for each in good.answers if isinstance(each, Delta)] == ["1", "1"]


def test_a_request_whose_client_has_left_is_not_read_any_more() -> None:
    bench = Bench()
    request, _ = bench.ask([1], tokens=900)
    _, other = bench.ask([1], tokens=5)
    bench.loop.run_once()
    bench.desk.cancel(request)
    bench.run(other)

    assert bench.runner.batches == [[1, 1], *[[1]] * 4]


def code_of(heard: Heard) -> tuple[int, str] | None:
    return (heard.end.status, heard.end.code) if isinstance(heard.end, Refused) else None


def test_a_request_is_accepted_with_its_first_token() -> None:
    bench = Bench()
    _, good = bench.ask([1, 2])
    _, unread = bench.ask([1, BAD])
    _, held = bench.ask([1, 3], tokens=0)
    bench.run(good, unread, held)

    assert isinstance(good.answers[0], Accepted)
    assert [code_of(each) for each in (unread, held)] == [
        (500, "sampling_failed"),
        (400, "no_token"),
    ]
    assert len(unread.answers) == len(held.answers) == 1


def test_a_prompt_that_cannot_be_copied_for_several_answers_fails_alone() -> None:
    bench = Bench()
    _, good = bench.ask([1, 2])
    bench.runner.can_copy = False
    bench.loop.run_once()
    _, bad = bench.ask([1, 2], choices=2)
    bench.run(good, bad)

    assert isinstance(good.end, Finished)
    assert code_of(bad) == (503, "sampler_memory")


def test_a_kept_prompt_that_cannot_be_copied_ends_only_the_request_that_begins_like_it() -> None:
    bench = Bench()
    bench.runner.can_copy = False
    _, first = bench.ask([1, 2, 3])
    bench.run(first)
    bench.runner.can_copy = True
    _, bad = bench.ask([1, 2, 4])
    _, good = bench.ask([5, 6])
    bench.run(good, bad)

    assert isinstance(good.end, Finished)
    assert code_of(bad) == (503, "sampler_memory")


def test_after_a_failed_step_prompts_are_read_again_in_pieces_beside_the_others() -> None:
    bench = Bench()
    _, long = bench.ask([2] * 900)
    _, bad = bench.ask([1, BAD])
    bench.loop.run_once()
    _, short = bench.ask([1])
    bench.run(bad, short)

    assert code_of(bad) == (500, "sampling_failed")
    assert isinstance(short.end, Finished)
    assert not long.answers
    bench.run(long)
    assert isinstance(long.end, Finished)
    assert max(sum(batch) for batch in bench.runner.batches) <= MOST


def test_answers_that_outgrow_the_memory_end_the_newest_request_of_the_largest_project() -> None:
    bench = Bench(memory_bytes=2100)
    _, oldest = bench.ask([1] * 5, tokens=100)
    _, newest = bench.ask([1] * 5, tokens=150)
    _, other = bench.ask([1] * 5, tokens=90, project="b")
    bench.run(oldest, newest, other)

    assert isinstance(oldest.end, Finished)
    assert isinstance(other.end, Finished)
    assert code_of(newest) == (503, "sampler_memory")


def test_a_prompt_waits_until_there_is_memory_for_it_and_smaller_ones_overtake_it() -> None:
    bench = Bench(memory_bytes=3000)
    _, first = bench.ask([1] * 100, tokens=20)
    _, long = bench.ask([1] * 150)
    _, short = bench.ask([1] * 5)
    bench.run(short)

    assert not long.answers
    bench.run(first, long)
    assert isinstance(first.end, Finished)
    assert isinstance(long.end, Finished)


def test_a_prompt_waits_for_memory_while_something_is_loaded() -> None:
    bench = Bench(memory_bytes=3000)
    bench.shelf._coming_bytes = 2900
    _, heard = bench.ask([1] * 5)
    bench.loop.run_once()
    assert not heard.answers
    bench.shelf._coming_bytes = 0
    bench.run(heard)

    assert isinstance(heard.end, Finished)


def test_a_request_does_not_wait_for_memory_for_ever() -> None:
    bench = Bench(memory_bytes=3000, patience_s=0)
    _, first = bench.ask([1] * 100, tokens=20)
    _, long = bench.ask([1] * 150)
    bench.loop.run_once()

    assert not first.answers
    assert code_of(long) == (503, "sampler_memory")


def test_when_training_begins_answers_have_a_while_to_finish() -> None:
    bench = Bench()
    _, heard = bench.ask([1])
    bench.loop.run_once()
    bench.desk.set_training(True)
    bench.run(heard)

    assert isinstance(heard.end, Finished)


def test_after_that_while_answers_end_and_the_memory_is_given_back() -> None:
    bench = Bench(grace_s=0)
    _, before = bench.ask([1, 2, 3], tokens=2)
    bench.run(before)
    _, endless = bench.ask([1], tokens=10**9)
    bench.loop.run_once()
    assert bench.shelf.prefixes.bytes
    bench.desk.set_training(True)
    bench.loop.run_once()

    assert code_of(endless) == (429, "training_in_progress")
    assert not bench.shelf.prefixes.bytes


def test_memory_is_given_back_even_if_nobody_has_said_that_training_began() -> None:
    bench = Bench()
    _, heard = bench.ask([1, 2, 3])
    bench.run(heard)
    bench.desk.set_training(True)
    assert bench.shelf.prefixes.bytes
    bench.loop.run_once()  # it was not waiting when that was said

    assert not bench.shelf.prefixes.bytes


def test_what_was_read_for_a_project_need_not_be_read_again() -> None:
    bench = Bench()
    _, first = bench.ask([1, 2, 3, 4])
    bench.run(first)
    _, second = bench.ask([1, 2, 3, 5])
    bench.run(second)

    accepted = second.answers[0]
    assert isinstance(accepted, Accepted)
    assert accepted.cached_tokens == 3


def test_a_kept_prompt_is_copied_while_others_look_for_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, found = Bench(), list[bool]()
    _, first = bench.ask([1, 2, 3])
    bench.run(first)
    fork = CountingCache.fork

    def fork_slowly(cache: CountingCache, length: int) -> CountingCache:
        looking = Thread(target=bench.shelf.has, args=[request.ask], daemon=True)
        looking.start()
        looking.join(timeout=5)
        found.append(not looking.is_alive())
        return fork(cache, length)

    monkeypatch.setattr(CountingCache, "fork", fork_slowly)
    request, second = bench.ask([1, 2, 4])
    bench.run(second)

    assert found == [True]


def test_a_step_that_does_not_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, noticed = Bench(), list[bool]()

    class SlowRunner(FailingRunner):
        def read(self, rows: Sequence[Row]) -> Tensor:
            noticed.append(would_be_noticed(bench.loop.pulse))
            return super().read(rows)

    monkeypatch.setattr(bench.runner, "read", SlowRunner().read)
    _, heard = bench.ask([1])
    bench.run(heard)

    assert noticed == [True] * 3
    assert not would_be_noticed(bench.loop.pulse)
