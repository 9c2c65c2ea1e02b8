"""Encodes an example as tokens, and says which of them are learned.

In a conversation, only the assistant's answers are learned: see `worker.training.data.answers`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import cast

from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import (
    ChatExample,
    ParsedExample,
    PreferenceExample,
    PromptExample,
)
from app.core.job.training_config import TrainingConfig, TrainOn
from worker.training.data.answers import RenderedChat, Span
from worker.training.data.chats import ChatRenderer
from worker.training.data.stop_tokens import StopTokens


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a generation. `load_tokenizer` has checked that there is one."""
    return cast("int", tokenizer.eos_token_id)


def today_of(config: TrainingConfig) -> date:
    """The date that chat templates see. Jobs of earlier releases take the day of the attempt."""
    return config.template_date or datetime.now(UTC).date()


@dataclass(frozen=True, slots=True)
class Encoded:
    """All tokens of one example, before any limit on their number."""

    input_ids: list[int]
    is_learned: list[bool]
    is_whole: bool = True
    """Whether the chat template writes the learned answers as they are. It may leave out thoughts,
    or the content beside a tool call."""


class Encoder:
    """Turns examples into tokens with the tokenizer of the base model.

    A text is learned as a whole, a prompt with a completion only in the completion, and a
    conversation in its answers. A preference is learned in its two answers. The end token is always
    learned.

    Attributes:
        ends: the texts that end what the examples so far teach.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: TrainOn = "all_assistant",
        today: date,
        stop_tokens: Sequence[str] | None = None,
    ) -> None:
        """Prepare to encode.

        Args:
            tokenizer: the tokenizer of the base model.
            train_on: what is learned.
            today: the date that a chat template sees.
            stop_tokens: tokens that stop the base model, if they are known.
        """
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._today = today
        self._stop_tokens = stop_tokens
        self.ends: set[str] = set()

    @classmethod
    def for_job(
        cls, config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, stops: StopTokens
    ) -> "Encoder":
        """The encoder of a job with these hyperparameters, whose base model stops at `stops`."""
        return cls(
            tokenizer,
            train_on=config.learned_part,
            today=today_of(config),
            stop_tokens=list(stops.base.values()) if stops.are_known else None,
        )

    def encode(self, example: ParsedExample) -> list[Encoded]:
        """The tokens of one line.

        Returns:
            One row, or one for each learned answer of a conversation. A preference is two rows: the
            prompt with the preferred answer, and with the other one.

        Raises:
            ChatTemplateError: the chat template cannot render it.
        """
        if isinstance(example, PreferenceExample):
            answers = (example.preferred, example.non_preferred)
            return [row for answer in answers for row in self.encode(answer)]
        if isinstance(example, ChatExample):
            self.ends.add(self._chat.stop)
            return self._encode_chat(example)
        self.ends.add(cast("str", self._tokenizer.eos_token))
        if isinstance(example, PromptExample):
            text = example.prompt + example.completion
            encoded = self._encode_text(text, [(len(example.prompt), len(text))])
        else:
            encoded = self._encode_text(example.text, [(0, len(example.text))])
        return [self._with_end(encoded)]

    @property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer reads as special tokens, wherever they are."""
        added = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    @cached_property
    def _chat(self) -> ChatRenderer:
        return ChatRenderer(self._tokenizer, today=self._today, stop_tokens=self._stop_tokens)

    def _encode_chat(self, example: ChatExample) -> list[Encoded]:
        if self._train_on == "everything":
            return [self._encode_rendered(self._chat.render_whole(example))]
        learned = [index for index, is_learned in enumerate(example.is_learned) if is_learned]
        if self._train_on == "last_assistant":
            last = max(i for i, m in enumerate(example.messages) if m["role"] == "assistant")
            learned = [index for index in learned if index == last]
        return [self._encode_rendered(chat) for chat in self._chat.render(example, learned)]

    def _encode_rendered(self, chat: RenderedChat) -> Encoded:
        encoded = self._encode_text(chat.text, chat.learned, is_rendered=True)
        return Encoded(encoded.input_ids, encoded.is_learned, chat.is_whole)

    def _encode_text(
        self, text: str, learned: Iterable[Span], *, is_rendered: bool = False
    ) -> Encoded:
        tokens = self._tokenizer(
            text,
            add_special_tokens=not is_rendered,  # a chat template writes them itself
            return_offsets_mapping=True,
            verbose=False,  # what is too long is reported for all rows at once
        )
        input_ids = cast("list[int]", tokens["input_ids"])
        if self._train_on == "everything":
            return Encoded(input_ids, [True] * len(input_ids))
        return Encoded(input_ids, _overlapping(tokens["offset_mapping"], learned, len(text)))

    def _with_end(self, encoded: Encoded) -> Encoded:
        """Add the token that ends a generation, unless the tokenizer has added it."""
        end = end_of_text(self._tokenizer)
        if encoded.input_ids and encoded.input_ids[-1] == end:
            return Encoded(encoded.input_ids, [*encoded.is_learned[:-1], True])
        return Encoded([*encoded.input_ids, end], [*encoded.is_learned, True])


def _overlapping(offsets: Sequence[Span], spans: Iterable[Span], characters: int) -> list[bool]:
    """For each token, whether it shares a character with one of `spans`.

    Some tokenizers trim spaces off the offsets of a token, down to nothing for one that is all
    spaces; so a token is taken to begin where the one before it ended.
    """
    is_in_span = bytearray(characters)
    for start, end in spans:
        is_in_span[start:end] = b"\1" * (end - start)
    overlaps: list[bool] = []
    previous_end = 0
    for start, end in offsets:
        overlaps.append(is_in_span.find(1, min(start, previous_end), end) >= 0)
        previous_end = max(previous_end, end)
    return overlaps
