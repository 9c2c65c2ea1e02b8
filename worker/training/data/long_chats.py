"""Finds the answers of a long conversation in a time that grows with its length, not its square.

To render the messages before each answer takes a time that grows with the square of their number.
So each question with what follows it is rendered with only the question before, and the text that
it adds there is taken. If these texts together are the text of the conversation, to the letter,
then the template writes each message alike in both, and the answers are where they were found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from worker.training.data.answers import AnswerFinder, RenderedChat, Span
from worker.training.data.chat_template import ChatTemplateError, Message, Tools

SHORT_CHAT = 16
"""Messages of a conversation of which every answer is found by rendering all that is before it."""


@dataclass(frozen=True, slots=True)
class LongChat:
    messages: list[Message]
    tools: Tools
    learned: Sequence[int]
    """Indices of the messages that are learned."""
    text: str
    """The whole conversation, rendered, with the token that stops the model after it."""


class _RewrittenError(Exception):
    """The template writes a message differently with other messages around it."""


def find_in_windows(finder: AnswerFinder, chat: LongChat) -> RenderedChat | None:
    """The conversation with its learned answers.

    Returns:
        None if the template does not write each message alike with and without the others.
    """
    learned: list[Span] = []
    is_whole = True
    try:
        for span, answer_is_whole in _find_spans(finder, chat):
            learned.append(span)
            is_whole &= answer_is_whole
        _check_some(finder, chat, learned)
    except (_RewrittenError, ChatTemplateError):
        return None
    return RenderedChat(chat.text, learned, is_whole)


def _find_spans(finder: AnswerFinder, chat: LongChat) -> Iterator[tuple[Span, bool]]:
    """Where each learned answer is, and whether the template writes it as it is."""

    def render(messages: list[Message]) -> str:
        return finder.render_to_end(messages, chat.tools).removesuffix(finder.closing)

    messages, is_learned = chat.messages, set(chat.learned)
    system = [message for message in messages[:1] if message["role"] == "system"]
    position = 0  # in the text, where the window begins
    earlier = 0
    for start, end in pairwise(_bounds(messages)):
        context = [*(system if earlier else []), *messages[earlier:start]]
        window = [*context, *messages[start:end]]
        before = render(context) if context else ""
        whole = render(window)
        added = whole.removeprefix(before)
        _require(whole.startswith(before) and chat.text.startswith(added, position))
        for index in range(start, end):
            if index in is_learned:
                answer = finder.find(window[: len(context) + index - start + 1], chat.tools)
                _require(whole.startswith(answer.text) and len(answer.prompt) >= len(before))
                shift = position - len(before)
                yield (answer.span[0] + shift, answer.span[1] + shift), answer.is_whole
        position += len(added)
        earlier = start
    _require(position == len(chat.text.removesuffix(finder.closing)))


def _check_some(finder: AnswerFinder, chat: LongChat, spans: Sequence[Span]) -> None:
    """Check the first, the middle and the last answer with all that is before them.

    A template might depend on the number of messages only where it asks for an answer.
    """
    for place in {0, len(spans) // 2, len(spans) - 1} if spans else ():
        answer = finder.find(chat.messages[: chat.learned[place] + 1], chat.tools)
        _require(chat.text.startswith(answer.text) and answer.span == spans[place])


def _bounds(messages: list[Message]) -> list[int]:
    """Where windows begin: at the first message, and at each question after an answer."""
    questions = (
        index
        for index, (before, message) in enumerate(pairwise(messages), 1)
        if message["role"] == "user" and before["role"] in {"assistant", "tool"}
    )
    return [0, *questions, len(messages)]


def _require(is_alike: bool) -> None:  # noqa: FBT001 - reads like an assertion
    if not is_alike:
        raise _RewrittenError
