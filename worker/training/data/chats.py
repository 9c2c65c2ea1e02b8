"""Turns a conversation into the texts to train on, with the parts of them that are learned.

Usually that is one text. Some templates rewrite earlier messages: Qwen3 drops the thoughts of
earlier answers, for example. An answer in the middle of such a text is not what the model writes
there at inference. Then each learned answer becomes a text of its own, which ends with it.
"""

from collections.abc import Sequence
from datetime import date

from transformers import PreTrainedTokenizerBase

from app.core.dataset.formats import ChatExample
from app.core.job.training_config import MAX_EXAMPLES_PER_LINE
from worker.training.data.answers import Answer, AnswerFinder, RenderedChat, is_whole
from worker.training.data.chat_template import ChatTemplate, ChatTemplateError, list_added_tokens
from worker.training.data.long_chats import SHORT_CHAT, LongChat, find_in_windows


class ChatRenderer:
    """Renders conversations with the chat template of one tokenizer.

    Raises:
        NoChatTemplateError: the tokenizer has none.
        ChatTemplateError: it does not mark where an answer ends.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        today: date,
        stop_tokens: Sequence[str] | None = None,
    ) -> None:
        """Render a probe to see how an answer ends.

        Args:
            tokenizer: the tokenizer of the base model.
            today: the date that the template sees.
            stop_tokens: tokens that stop the base model; None if unknown, so that every added
                token may be one.
        """
        self._template = ChatTemplate(tokenizer, today=today)
        self._finder = AnswerFinder(self._template, stop_tokens, list_added_tokens(tokenizer))

    @property
    def stop(self) -> str:
        """What ends a plain answer."""
        return self._finder.stop

    def render_whole(self, example: ChatExample) -> RenderedChat:
        """The text of a conversation, in which all is learned.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        text = self._render_text(example)
        answers = (message for message in example.messages if message["role"] == "assistant")
        return RenderedChat(text, [(0, len(text))], all(is_whole(m, text) for m in answers))

    def render(self, example: ChatExample, learned: Sequence[int]) -> list[RenderedChat]:
        """The texts of a conversation: one, or one for each learned answer.

        Args:
            example: the conversation.
            learned: indices of the messages that are learned, in their order.

        Raises:
            ChatTemplateError: the template refuses the conversation, or an answer cannot be found
                in what it writes.
        """
        text = self._render_text(example)
        messages, tools = self._template.adapt(example.messages), example.tools
        if len(messages) > SHORT_CHAT:
            chat = find_in_windows(self._finder, LongChat(messages, tools, learned, text))
            if chat is not None:
                return [chat]
        if len(messages) > MAX_EXAMPLES_PER_LINE:  # the time would grow with the square
            raise ChatTemplateError(
                f"the chat template renders earlier messages differently once others follow, and "
                f"this chat has {len(messages):,} messages; the limit for such a template is "
                f"{MAX_EXAMPLES_PER_LINE:,}, so split it"
            )
        answers = [self._finder.find(messages[: index + 1], tools) for index in learned]
        if all(text.startswith(answer.text) for answer in answers):
            return [_as_one(text, answers)]
        return [_as_one(answer.text, [answer]) for answer in answers]

    def _render_text(self, example: ChatExample) -> str:
        text = self._finder.render_to_end(self._template.adapt(example.messages), example.tools)
        _check_text(text)
        return text


def _as_one(text: str, answers: Sequence[Answer]) -> RenderedChat:
    """The text with these answers in it."""
    spans = [answer.span for answer in answers]
    return RenderedChat(text, spans, all(answer.is_whole for answer in answers))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # from the arguments of a tool call
        raise ChatTemplateError("a tool call has half of a surrogate pair") from error
