"""Turns what is asked into the tokens that the model reads, exactly as training does."""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import cast

from transformers import PreTrainedTokenizerBase

from app.core.sampling.messages import ChatPrompt, TextPrompt
from worker.sampling.decoding.probes import writes_calls, writes_tools
from worker.sampling.decoding.refusals import RefusedError
from worker.training.data.chat_template import (
    ChatTemplate,
    ChatTemplateError,
    NoChatTemplateError,
)
from worker.training.data.encoding import end_of_text


def utc_today() -> date:
    return datetime.now(UTC).date()


class PromptWriter:
    """Writes prompts for one base model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int,
        vocabulary: int,
        today: Callable[[], date] = utc_today,
    ) -> None:
        """Prepare to write.

        Args:
            tokenizer: the tokenizer of the base model.
            window: maximum number of tokens of a sequence.
            vocabulary: number of tokens that the model knows.
            today: tells the day that chat templates see.
        """
        self._tokenizer = tokenizer
        self._window = window
        self._vocabulary = vocabulary
        self._today = today
        self._template: tuple[date, ChatTemplate] | None = None

    def write(self, prompt: ChatPrompt | TextPrompt) -> list[int]:
        """The tokens of a prompt. The window has room for at least one more.

        Raises:
            RefusedError: the model cannot read this prompt.
        """
        if isinstance(prompt, ChatPrompt):
            tokens, param = self._encode(self.render(prompt), is_rendered=True), "messages"
        else:
            tokens, param = self._write_text(prompt), "prompt"
        if len(tokens) >= self._window:
            raise RefusedError(  # clients look for the words before the first full stop
                "context_length_exceeded",
                f"This model's maximum context length is {self._window} tokens. However, your "
                f"prompt has {len(tokens)} tokens, and the answer needs at least one. Shorten the "
                f"{param}.",
                param=param,
            )
        return tokens

    def render(self, prompt: ChatPrompt) -> str:
        """The text of a chat, with the beginning of the answer.

        Raises:
            RefusedError: the chat template does not take the messages or the tools.
        """
        try:
            template = self.template
            _check_tools(prompt, template)
            text = template.render(
                template.adapt(prompt.messages),
                list(prompt.tools) or None,
                add_generation_prompt=True,
            )
            text.encode()
        except NoChatTemplateError:
            message = (
                "This model has no chat template, so it cannot read messages. Use /v1/completions "
                "with a prompt, or a model that has one."
            )
            raise RefusedError("no_chat_template", message, param="model") from None
        except ChatTemplateError as error:
            message = f"This model cannot read these messages: {error}."
            raise RefusedError("chat_template_unsupported", message, param="messages") from None
        except UnicodeEncodeError:
            message = "The arguments of a tool call have half of a surrogate pair. Remove it."
            raise RefusedError("invalid_value", message, param="messages") from None
        return text

    @property
    def template(self) -> ChatTemplate:
        """The chat template as of today.

        Raises:
            NoChatTemplateError: the base model has none.
        """
        today = self._today()
        if self._template is None or self._template[0] != today:
            self._template = today, ChatTemplate(self._tokenizer, today=today)
        return self._template[1]

    def _write_text(self, prompt: TextPrompt) -> list[int]:
        if prompt.tokens is None:
            tokens = self._encode(prompt.text, is_rendered=False)
        else:
            tokens = list(prompt.tokens)
        unknown = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if unknown is not None:
            raise RefusedError(
                "invalid_value",
                f"The model has no token {unknown}: tokens are 0 to {self._vocabulary - 1}.",
                param="prompt",
            )
        # A model needs something to begin with.
        first = cast("int | None", self._tokenizer.bos_token_id)
        return tokens or [end_of_text(self._tokenizer) if first is None else first]

    def _encode(self, text: str, *, is_rendered: bool) -> list[int]:
        """The tokens of a text, without the end token that some tokenizers add.

        Args:
            text: what to encode.
            is_rendered: whether a chat template has written it, with all its special tokens.
        """
        tokens = self._tokens_of(text, add_special_tokens=not is_rendered)
        end = end_of_text(self._tokenizer)
        if (
            not is_rendered
            and tokens[-1:] == [end]
            and self._tokens_of(text, add_special_tokens=False)[-1:] != [end]
        ):
            tokens.pop()
        return tokens

    def _tokens_of(self, text: str, *, add_special_tokens: bool) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return cast("list[int]", encoded["input_ids"])


def _check_tools(prompt: ChatPrompt, template: ChatTemplate) -> None:
    """Refuse what the template would leave out without a word.

    A template that writes calls but no tools is taken: tuning can teach a model which tools it has.
    So is every template for a forced call, which needs nothing but its schema.
    """
    must_fit = prompt.tools and prompt.tool_choice != "forced"
    if must_fit and not writes_tools(template) and not writes_calls(template):
        message = (
            "This model's chat template has no place for tools. Leave 'tools' out, or use a model "
            "whose template has one."
        )
        raise RefusedError("tools_not_supported", message, param="tools")
    has_calls = any(message.get("tool_calls") for message in prompt.messages)
    if has_calls and not writes_calls(template):
        message = (
            "This model's chat template leaves tool calls out. Remove them from the messages, or "
            "use a model whose template writes them."
        )
        raise RefusedError("tools_not_supported", message, param="messages")
