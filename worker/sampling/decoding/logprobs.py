"""Tells how likely the tokens of an answer were.

Dimension key:
    V  vocabulary
"""

import math
from collections import deque

import numpy as np

from app.core.sampling.messages import ChosenLogProb, TokenLogProb
from worker.sampling.decoding.next_token import Floats
from worker.sampling.decoding.text.token_text import TokenTexts

_IMPOSSIBLE = -9999.0
"""Stands for the logarithm of nothing, as in OpenAI's API."""


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
        self._held: deque[tuple[int, ChosenLogProb]] = deque()

    def add(self, logits_V: Floats, token: int, *, end: int) -> None:
        """Note a token.

        Args:
            logits_V: what it was chosen by, before anything was changed.
            token: the token.
            end: number of characters of the answer up to its end.
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
        self._held.append((end, chosen))

    def tell(self, *, end: int) -> tuple[ChosenLogProb, ...]:
        """What is known of the tokens whose text ends at this character or before it."""
        told: list[ChosenLogProb] = []
        while self._held and self._held[0][0] <= end:
            told.append(self._held.popleft()[1])
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
