"""Tells how likely the tokens of an answer were.

Dimension key:
    V  vocabulary
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from app.core.sampling.messages import ChosenLogProb, TokenLogProb
from worker.sampling.decoding.next_token import Floats
from worker.sampling.decoding.text.token_text import TokenTexts

_IMPOSSIBLE = -9999.0
"""Stands for the logarithm of nothing, as in OpenAI's API."""


class _Held(NamedTuple):
    """A token whose text may not be told yet."""

    begin: int
    end: int
    chosen: ChosenLogProb

    def is_told(self, end: int, *, is_cut: bool) -> bool:
        return self.end <= end or (is_cut and self.begin < end)


class LogProbs:
    """The log-probabilities of one answer. Those of a token are told together with its text."""

    def __init__(self, texts: TokenTexts, *, top: int) -> None:
        """Prepare to tell.

        Args:
            texts: the texts of the tokens.
            top: number of the most likely tokens to tell with each token.
        """
        self._texts = texts
        self._top = top
        self._held: deque[_Held] = deque()

    def add(self, logits_V: Floats, token: int, *, begin: int, end: int) -> None:
        """Note a token.

        Args:
            logits_V: what it was chosen by, before anything was changed.
            token: the token.
            begin: number of complete characters of the answer before it.
            end: number of characters of the answer up to its end, the last one perhaps incomplete.
        """
        peak = logits_V.max()
        norm = float(peak) + math.log(np.exp(logits_V - peak).sum(dtype=np.float64))
        chosen = ChosenLogProb(
            **self._describe(token, float(logits_V[token]) - norm).model_dump(),
            top=tuple(
                self._describe(likely, float(logits_V[likely]) - norm)
                for likely in self._most_likely(logits_V)
            ),
        )
        self._held.append(_Held(begin, end, chosen))

    def tell(self, *, end: int, is_cut: bool) -> tuple[ChosenLogProb, ...]:
        """What is known of the tokens whose text is told.

        Args:
            end: number of characters that are told.
            is_cut: whether a stop text ended the answer there. It may begin within a token, whose
                first characters are told then.
        """
        told: list[ChosenLogProb] = []
        while self._held and self._held[0].is_told(end, is_cut=is_cut):
            told.append(self._held.popleft().chosen)
        return tuple(told)

    def _most_likely(self, logits_V: Floats) -> list[int]:
        top = min(self._top, len(logits_V))
        if top == 0:
            return []
        likely = np.argpartition(logits_V, -top)[-top:]
        return likely[np.argsort(-logits_V[likely], kind="stable")].tolist()

    def _describe(self, token: int, logprob: float) -> TokenLogProb:
        text = self._texts.read(token)
        return TokenLogProb(
            token=text.decode("utf-8", "replace"),
            logprob=max(logprob, _IMPOSSIBLE),
            text_bytes=tuple(text),
        )
