"""Encodes an example as tokens, and says which of them are learned.

In a conversation, only the assistant's answers are learned. An answer begins after the prompt that
the chat template puts before it, and ends with the token that ends the turn. The template itself
shows where that is, so nothing here is specific to a family of models.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import ChatExample, Example, PromptExample

Span = tuple[int, int]
"""Characters of a text, from the first to one past the last."""

_PROBE = "Qm7answerXz4"
"""Stands for an answer; one word that no template changes and that is in none."""


class ChatTemplateError(Exception):
    """The template cannot render a conversation, or not so that its answers can be found."""

    code = "chat_template_unsupported"


class NoChatTemplateError(ChatTemplateError):
    code = "no_chat_template"


class ChatRenderer:
    """The chat template of one tokenizer.

    Raises:
        NoChatTemplateError: the tokenizer has none.
        ChatTemplateError: it does not mark where an answer ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise NoChatTemplateError(
                "it has no chat template; use the format text or prompt_completion, or a base "
                "model that has one"
            )
        self._tokenizer = tokenizer
        self._end_of_turn = self._find_end_of_turn()

    def render(self, example: ChatExample) -> tuple[str, list[Span]]:
        """The text of a conversation, and the parts of it that are learned.

        Raises:
            ChatTemplateError: the template refuses the conversation, or renders a message in
                another way once more messages follow it.
        """
        messages = [_with_parsed_arguments(message) for message in example.messages]
        text = self._apply(messages, example.tools)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # from the arguments of a tool call
            raise ChatTemplateError("a tool call has half of a surrogate pair") from error
        spans = [
            self._find_answer(text, messages[: index + 1], example.tools)
            for index, is_learned in enumerate(example.is_learned)
            if is_learned
        ]
        return text, spans

    def _find_answer(
        self, text: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> Span:
        """Where the last of `messages` is in `text`, up to and including its end of turn."""
        *before, answer = messages
        prompt = self._render_prompt(before, tools)
        position = f"messages[{len(before)}]"
        if not text.startswith(prompt):
            raise ChatTemplateError(
                f"the chat template renders the messages before {position} differently once that "
                "message is added, so the tokens of the answer cannot be identified"
            )
        start = len(prompt)
        first_end = text.find(self._end_of_turn, start)
        if first_end < 0:
            raise ChatTemplateError(f"the chat template does not end the turn of {position}")
        content = answer["content"].strip()
        content_start = text.find(content, start)
        if content_start > first_end:  # the template changed it; this is the same text further on
            content_start = -1
        content_end = start if content_start < 0 else content_start + len(content)
        # An answer may itself hold the text that ends a turn.
        end = max(first_end, text.find(self._end_of_turn, content_end))
        return start, end + len(self._end_of_turn)

    def _render_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> str:
        """All that the model is given before it writes the answer to `messages`."""
        if messages:
            return self._apply(messages, tools, add_generation_prompt=True)
        # Templates need a message, so the prompt of one that opens a chat is seen before a probe.
        return self._apply([{"role": "assistant", "content": _PROBE}], tools).partition(_PROBE)[0]

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _PROBE}]
        _, found, after = self._apply(probe, None).partition(_PROBE)
        if not found or not after.strip():
            raise ChatTemplateError(
                "the chat template does not mark where an answer ends, so a tuned model would "
                "never stop"
            )
        return after.split(maxsplit=1)[0]

    def _apply(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=tools,  # pyright: ignore[reportArgumentType] - it takes any mapping
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except RecursionError as error:
            raise ChatTemplateError("its tools or tool calls are nested too deeply") from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ChatTemplateError(f"the chat template failed: {error}") from error


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as objects, which is what templates take.

    OpenAI's format has them as a string of JSON.
    """
    calls = message.get("tool_calls")
    if not calls:
        return message
    return message | {"tool_calls": [_with_parsed_call(call) for call in calls]}


def _with_parsed_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):  # the model may be meant to learn to write such a thing
        return call
    return call | {"function": function | {"arguments": arguments}}


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
