"""Encodes an example as tokens, and says which of them are learned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import ChatExample, Example, PromptExample
from worker.training.data.chat import ChatRenderer, Span


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a generation. `load_tokenizer` has checked that there is one."""
    return cast("int", tokenizer.eos_token_id)


@dataclass(frozen=True, slots=True)
class Encoded:
    """All tokens of one example, before any limit on their number."""

    input_ids: list[int]
    is_learned: list[bool]


class Encoder:
    """Turns examples into tokens with the tokenizer of the base model.

    A text is learned as a whole, a prompt with a completion only in the completion, and a
    conversation in the parts that `ChatRenderer` names. The end token is always learned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, train_on_inputs: bool) -> None:
        self._tokenizer = tokenizer
        self._train_on_inputs = train_on_inputs

    def encode(self, example: Example) -> Encoded:
        """The tokens of one example.

        Raises:
            ChatTemplateError: the chat template cannot render it.
        """
        if isinstance(example, ChatExample):
            text, learned = self._chat.render(example)
            return self._encode_text(text, learned, is_rendered=True)
        if isinstance(example, PromptExample):
            text = example.prompt + example.completion
            encoded = self._encode_text(text, [(len(example.prompt), len(text))])
        else:
            encoded = self._encode_text(example.text, [(0, len(example.text))])
        return self._with_end(encoded)

    @cached_property
    def _chat(self) -> ChatRenderer:
        return ChatRenderer(self._tokenizer)

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
        if self._train_on_inputs:
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
