"""What ends the answers of a base model, tuned or not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from worker.training.data.answers import AnswerFinder
from worker.training.data.chat_template import ChatTemplate, ChatTemplateError, list_added_tokens
from worker.training.data.stop_tokens import StopTokens


@dataclass(frozen=True, slots=True)
class Stops:
    tokens: frozenset[int]
    texts: tuple[str, ...] = ()
    """What ends an answer and is not one token."""


class Endings:
    """Where a base model stops, and where training teaches its adapters to stop."""

    def __init__(
        self,
        base_model: Path,
        tokenizer: PreTrainedTokenizerBase,
        template: Callable[[], ChatTemplate],
    ) -> None:
        """Read the settings of a base model.

        Args:
            base_model: its directory.
            tokenizer: its tokenizer.
            template: tells its chat template, or raises ChatTemplateError.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._base = StopTokens.read(base_model, tokenizer)

    @property
    def of_texts(self) -> Stops:
        return Stops(frozenset(self._base.base))

    @cached_property
    def of_chats(self) -> Stops:
        if self.finder is None:
            return self.of_texts
        taught = self._base.teaching([self.finder.stop], self._tokenizer).taught
        tokens = {token for token in taught.values() if token is not None}
        texts = (text for text, token in taught.items() if token is None)
        return Stops(frozenset(tokens.union(self._base.base)), tuple(texts))

    @cached_property
    def finder(self) -> AnswerFinder | None:
        """Finds what training teaches. None if nothing can be taught with this template."""
        stop_tokens = list(self._base.base.values()) if self._base.are_known else None
        try:
            template = self._template()
            return AnswerFinder(template, stop_tokens, list_added_tokens(self._tokenizer))
        except ChatTemplateError:
            return None
