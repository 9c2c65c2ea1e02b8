"""Lets both models answer, several prompts at a time, until all answers or the time are over."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from app.core.job.scores.report import ModelAnswer
from app.core.sampling.messages import Delta
from worker.sampling.decoding.decoder import Prepared
from worker.sampling.model.runner import Adapter, Cache, Row, Runner

_AT_ONCE = 16
"""Number of answers in the making. With more, a step takes longer for each of them."""

_PIECE = 64
"""Tokens of a prompt that are read in one step, so that the memory of a step stays small."""


class Draft:
    """The answer of one model to one prompt, in the making.

    Attributes:
        answer: what there is of it.
    """

    def __init__(self, prepared: Prepared, adapter: Adapter | None) -> None:
        self._tokens = list(prepared.prompt)
        (self._choice,) = prepared.choices
        self._adapter = adapter
        self._cache: Cache | None = None
        self._texts: list[str] = []
        self._reason: Literal["stop", "length"] | None = None

    @property
    def is_finished(self) -> bool:
        return self._reason is not None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def answer(self) -> ModelAnswer:
        return ModelAnswer(text=self.text, finish_reason=self._reason)

    def next_row(self, runner: Runner) -> Row:
        """What it reads next."""
        cache = self._cache = runner.new_cache() if self._cache is None else self._cache
        begin = cache.length
        return Row(cache, self._tokens[begin : begin + _PIECE], self._adapter)

    def take(self, logits_V: torch.Tensor) -> None:
        """Choose the next token, once the prompt is read.

        Raises:
            RefusedError: the model computes no numbers.
        """
        if self._cache is None or self._cache.length < len(self._tokens):
            return
        token, told = self._choice.take(logits_V)
        for each in told:
            if isinstance(each, Delta):
                self._texts.append(each.text)
            else:
                self._reason = "length" if each.reason == "length" else "stop"
        if token is not None:
            self._tokens.append(token)
        if self.is_finished:
            self._cache = None  # so that its memory is free


@torch.inference_mode()
def answer_all(
    drafts: Sequence[Draft],
    runner: Runner,
    *,
    is_over: Callable[[], bool],
    tell_fraction: Callable[[float], None],
) -> None:
    """Finish the drafts, in their order as far as possible.

    Args:
        drafts: the answers to make.
        runner: runs the models.
        is_over: whether the time is over.
        tell_fraction: takes the fraction of the drafts that are finished, after every step.

    Raises:
        RefusedError: a model computes no numbers.
    """
    waiting, running = deque(drafts), list[Draft]()
    while not is_over():
        while waiting and len(running) < _AT_ONCE:
            running.append(waiting.popleft())
        if not running:
            return
        logits_BV = runner.read([draft.next_row(runner) for draft in running])
        for draft, logits_V in zip(running, logits_BV, strict=True):
            draft.take(logits_V)
        running = [draft for draft in running if not draft.is_finished]
        tell_fraction(1 - (len(waiting) + len(running)) / len(drafts))
