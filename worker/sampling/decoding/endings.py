"""What ends the answers of a base model, tuned or not."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.chats import ChatRenderer
from worker.training.data.stop_tokens import StopTokens


@dataclass(frozen=True, slots=True)
class Stops:
    tokens: frozenset[int]
    texts: tuple[str, ...] = ()
    """What ends an answer and is not one token."""


class Endings:
    """Where a base model stops, and where training teaches its adapters to stop."""

    def __init__(
        self, base_model: Path, tokenizer: PreTrainedTokenizerBase, today: Callable[[], date]
    ) -> None:
        """Read the settings of a base model.

        Args:
            base_model: its directory.
            tokenizer: its tokenizer.
            today: tells the day that chat templates see.
        """
        self._tokenizer = tokenizer
        self._today = today
        self._base = StopTokens.read(base_model, tokenizer)

    @property
    def of_texts(self) -> Stops:
        return Stops(frozenset(self._base.base))

    @cached_property
    def of_chats(self) -> Stops:
        stop_tokens = list(self._base.base.values()) if self._base.are_known else None
        try:
            renderer = ChatRenderer(self._tokenizer, today=self._today(), stop_tokens=stop_tokens)
        except ChatTemplateError:  # it marks no end, so nothing was taught either
            return self.of_texts
        taught = self._base.teaching([renderer.stop], self._tokenizer).taught
        tokens = {token for token in taught.values() if token is not None}
        texts = (text for text, token in taught.items() if token is None)
        return Stops(frozenset(tokens.union(self._base.base)), tuple(texts))

    @property
    def written(self) -> list[str]:
        """All that ends an answer in a chat, as it is written."""
        stops = self.of_chats
        tokens = (self._tokenizer.convert_ids_to_tokens(token) for token in stops.tokens)
        return [*map(str, tokens), *stops.texts]
