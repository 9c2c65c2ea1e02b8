"""Renders conversations with the chat template of a base model."""

import json
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _compile_jinja_template,  # pyright: ignore[reportPrivateUsage] - the cache of all renders
)

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None

_TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError),
    ArithmeticError,  # such as a range that the template's sandbox finds too long
)
"""What a template raises for a conversation that it does not take."""


class ChatTemplateError(Exception):
    """The template cannot render a conversation, or not so that its answers can be found."""

    code = "chat_template_unsupported"


class NoChatTemplateError(ChatTemplateError):
    code = "no_chat_template"


class ChatTemplate:
    """The chat template of one tokenizer, for which it is always the same day.

    Raises:
        NoChatTemplateError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, today: date) -> None:
        template = cast("str | dict[str, str] | None", tokenizer.chat_template)
        if not template:
            raise NoChatTemplateError(
                "it has no chat template; use the format text or prompt_completion, or a base "
                "model that has one"
            )
        self._tokenizer = tokenizer
        for text in (template,) if isinstance(template, str) else template.values():
            _stop_clock(text, today)

    def adapt(self, messages: Sequence[Message]) -> list[Message]:
        """The messages of an example in the form that this template takes.

        OpenAI's format has the arguments of a tool call as a string of JSON. Nearly all templates
        take an object instead.
        """
        if not self._takes_objects:
            return list(messages)
        return [_with_parsed_arguments(message) for message in messages]

    def render(
        self, messages: list[Message], tools: Tools = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,  # pyright: ignore[reportArgumentType] - it takes any mapping
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except RecursionError as error:
            raise ChatTemplateError("its tools or tool calls are nested too deeply") from error
        except _TEMPLATE_ERRORS as error:
            raise ChatTemplateError(f"the chat template failed: {error}") from error
        return str(text)

    @cached_property
    def _takes_objects(self) -> bool:
        return self._renders_arguments({}) or not self._renders_arguments("{}")

    def _renders_arguments(self, arguments: object) -> bool:
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": "call00000", "type": "function", "function": function}]
        question = {"role": "user", "content": "Q"}
        try:
            self.render([question, {"role": "assistant", "content": "", "tool_calls": calls}])
        except ChatTemplateError:
            return False
        return True


def list_added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that no text is split into, such as those that end a turn."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def _stop_clock(template: str, today: date) -> None:
    """Let a template that asks for the time see midnight of `today`, in this process.

    An argument of the rendering cannot replace the clock, because functions are filtered out.
    """
    _compile_jinja_template(template).globals["strftime_now"] = today.strftime


def _with_parsed_arguments(message: Message) -> Message:
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
