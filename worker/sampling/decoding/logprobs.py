"""Tells how likely the tokens of an answer were.

Dimension key:
    V  vocabulary
"""

from collections import deque

from torch import Tensor

from app.core.sampling.messages import ChosenLogProb, TokenLogProb
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

    def add(self, logits_V: Tensor, token: int, *, end: int) -> None:
        """Note a token.

        Args:
            logits_V: what it was chosen by, before anything was changed.
            token: the token.
            end: number of characters of the answer up to its end.
        """
        norm = float(logits_V.logsumexp(0))
        top = logits_V.topk(min(self._top, len(logits_V)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        chosen = ChosenLogProb(
            **self._describe(token, float(logits_V[token]) - norm).model_dump(),
            top=tuple(self._describe(token, logit - norm) for token, logit in pairs),
        )
        self._held.append((end, chosen))

    def tell(self, *, end: int) -> tuple[ChosenLogProb, ...]:
        """What is known of the tokens whose text ends at this character or before it."""
        told: list[ChosenLogProb] = []
        while self._held and self._held[0][0] <= end:
            told.append(self._held.popleft()[1])
        return tuple(told)

    def _describe(self, token: int, logprob: float) -> TokenLogProb:
        text = self._texts.read(token)
        return TokenLogProb(
            token=text.decode("utf-8", "replace"),
            logprob=max(logprob, _IMPOSSIBLE),
            text_bytes=tuple(text),
        )
