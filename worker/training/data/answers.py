"""Finds what a model has to write for an answer, from the chat template alone.

An answer begins after the prompt that an inference server renders, and ends with the token that
stops the generation. The template is rendered with and without the answer, with and without a
message after it, and with probes in place of texts. So nothing here knows a family of models, and
no answer is searched for in a text that may hold it twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from worker.training.data.chat_template import ChatTemplate, ChatTemplateError, Message, Tools

_PROBE = "Qm7probeXz4"
"""Stands for a text of a message; one word that no template changes and that is in none."""

Span = tuple[int, int]
"""Characters of a text, from the first to one past the last."""

_QUESTION: Message = {"role": "user", "content": "Q"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is at inference."""

    prompt: str
    """All that the model is given."""
    completion: str
    """All that the model has to write, through the token that stops it."""
    is_whole: bool
    """Whether the completion has the content and the thought of the message as they are."""

    @property
    def text(self) -> str:
        return self.prompt + self.completion

    @property
    def span(self) -> Span:
        """Where the completion is in the text."""
        return len(self.prompt), len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class RenderedChat:
    text: str
    learned: list[Span]
    is_whole: bool
    """Whether the learned answers are whole."""


class AnswerFinder:
    """Finds answers with one chat template.

    Attributes:
        template: the chat template.
        stop: what ends a plain answer, without the white space before it.
        closing: what the template writes after that, at the end of a conversation.
    """

    def __init__(
        self, template: ChatTemplate, stop_tokens: Sequence[str] | None, added_tokens: Sequence[str]
    ) -> None:
        """Render a probe to see how an answer ends.

        Args:
            template: the chat template.
            stop_tokens: the tokens that stop the base model, if they are known.
            added_tokens: the tokens that may end an answer if the stop tokens are not known.

        Raises:
            ChatTemplateError: the template does not mark where an answer ends.
        """
        self.template = template
        self._stop_tokens = tuple(stop_tokens or ())
        self._ends = tuple(added_tokens) if stop_tokens is None else self._stop_tokens
        self._tail, self._unwritten_end, self.closing = self._find_tail()
        self.stop = self._tail.removesuffix(self.closing).lstrip()

    def find(self, messages: Sequence[Message], tools: Tools) -> Answer:
        """The last of `messages`, which is an answer, as the model has to write it.

        Raises:
            ChatTemplateError: the template refuses the conversation, or writes the answer so that
                its beginning or its end cannot be proven.
        """
        *before, answer = messages
        position = f"messages[{len(before)}]"
        prompt = self._render_prompt(before, tools)
        answer = _with_begun_thought(answer, prompt)
        completion = self._find_completion(prompt, before, answer, tools)
        if completion is None:
            raise ChatTemplateError(
                f"the chat template writes {position} differently from how it asks the model for "
                "it, so the tokens of the answer cannot be identified"
            )
        self._check_calls(messages, tools)
        is_plain = completion.endswith(self._tail)
        completion = completion.removesuffix(self.closing)
        if not is_plain:
            completion = completion.rstrip()
            if not completion.endswith(self._ends):
                raise ChatTemplateError(f"the chat template does not end the turn of {position}")
        return Answer(prompt, completion, is_whole(answer, completion))

    def render_to_end(self, messages: list[Message], tools: Tools) -> str:
        """The conversation, with the token that stops the model after an answer.

        Some templates do not write that token. GLM's stops the model with the token that begins
        the next message, which is `<|user|>` after an answer and `<|observation|>` after a call.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        text = self.template.render(messages, tools)
        if not self._unwritten_end or messages[-1]["role"] != "assistant":
            return text
        calls = messages[-1].get("tool_calls")
        if not calls:
            return text + self._unwritten_end
        result = {"role": "tool", "content": "R", "tool_call_id": calls[-1].get("id")}
        followed = self.template.render([*messages, result], tools)
        return text + self._leading_stop(followed, after=text)

    def _find_completion(
        self, prompt: str, before: list[Message], answer: Message, tools: Tools
    ) -> str | None:
        """What the template writes after the prompt, to the end of the conversation.

        Some templates write the messages before the answer in another way once it is there. Then
        the text after the last of them is compared, which a probe marks.
        """
        for history, cut in ((before, _whole), (_with_probe(before), _after_probe)):
            asked = prompt if history is before else cut(self._render_prompt(history, tools))
            if asked is None or not prompt.endswith(asked):
                continue
            for write in (self.render_to_end, self._write_empty_thought, self._write_thought):
                text = write([*history, answer], tools)
                written = None if text is None else cut(text)
                if written is not None and written.startswith(asked):
                    return written.removeprefix(asked)
        return self._find_after_empty_thought(prompt, [*before, answer], tools)

    def _find_after_empty_thought(
        self, prompt: str, messages: list[Message], tools: Tools
    ) -> str | None:
        """What the template writes after a thought, if the prompt ends with an empty one.

        Gemma 4 asks for an answer with an empty thought, which no message has.
        """
        *before, answer = messages
        thinking = answer | {"reasoning_content": _PROBE}
        begin, _, rest = self.render_to_end([*before, thinking], tools).partition(_PROBE)
        end = prompt.removeprefix(begin.rstrip()).lstrip()
        if not end or not prompt.startswith(begin.rstrip()) or not rest.lstrip().startswith(end):
            return None
        return rest.lstrip().removeprefix(end)

    def _check_calls(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse an answer of which the template drops a call. Probes take the place of the names.

        Raises:
            ChatTemplateError: the name of a call is not in the text.
        """
        *before, answer = messages
        calls = [
            call | {"function": call["function"] | {"name": f"{_PROBE}{index}z"}}
            for index, call in enumerate(answer.get("tool_calls") or [])
            if isinstance(call.get("function"), dict)
        ]
        if not calls:
            return
        text = self.template.render([*before, answer | {"tool_calls": calls}], tools)
        if not all(call["function"]["name"] in text for call in calls):
            raise ChatTemplateError(
                f"the chat template does not write all tool calls of messages[{len(before)}]; use "
                "a base model whose template supports them"
            )

    def _write_empty_thought(self, messages: list[Message], tools: Tools) -> str | None:
        """The conversation with the thought in its last answer that the template has for none.

        Some templates begin a thought in the prompt and write none for an answer without one.
        """
        *before, answer = messages
        if answer.get("reasoning_content") or "</think>" in answer["content"]:
            return None
        thinking = answer | {"reasoning_content": _PROBE}
        return _replace_probe(self.render_to_end([*before, thinking], tools), "")

    def _write_thought(self, messages: list[Message], tools: Tools) -> str | None:
        """The conversation with the thought of its last answer written out.

        Some templates begin a thought in the prompt, and drop it from every answer.
        """
        *before, answer = messages
        content, thought = answer["content"], answer.get("reasoning_content") or ""
        if "</think>" not in content:
            content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
        probe = answer | {"content": _PROBE}
        probe.pop("reasoning_content", None)
        return _replace_probe(self.render_to_end([*before, probe], tools), content)

    def _render_prompt(self, messages: list[Message], tools: Tools) -> str:
        """All that the model is given before it writes the answer to `messages`."""
        if messages:
            return self.template.render(messages, tools, add_generation_prompt=True)
        # Templates need a message, so the prompt of one that opens a chat is seen before a probe.
        opening = [{"role": "assistant", "content": _PROBE}]
        return self.template.render(opening, tools).partition(_PROBE)[0]

    def _leading_stop(self, text: str, *, after: str) -> str:
        """What stands after the beginning of a text through a stop token; empty if it has none."""
        rest = text.removeprefix(after) if text.startswith(after) else ""
        stops = (stop for stop in self._stop_tokens if rest.lstrip().startswith(stop))
        stop = max(stops, key=len, default="")
        return rest[: rest.find(stop) + len(stop)]

    def _find_tail(self) -> tuple[str, str, str]:
        """What follows a plain answer, and which parts of that end only some conversations.

        Returns:
            What stands after an answer at the end of a conversation; the end of it that the
            template writes only if a message follows; the end of it that the template writes only
            if none follows. The latter is not part of an answer, such as the end-of-text token of
            Phi-3.
        """
        chat = [_QUESTION, {"role": "assistant", "content": _PROBE}]
        tail = self.template.render(chat).partition(_PROBE)[2]
        followed = self.template.render([*chat, _QUESTION]).partition(_PROBE)[2]
        if not tail.strip():
            unwritten = self._leading_stop(followed, after=tail)
            if not unwritten:
                raise ChatTemplateError(
                    "the chat template does not mark where an answer ends, so a tuned model would "
                    "never stop"
                )
            return tail + unwritten, unwritten, ""
        end = len(tail.rstrip())
        if not followed.startswith(tail[:end]):
            pairs = zip(tail.split(), followed.split(), strict=False)
            shared = [word for word, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
            end = tail.find(shared[-1]) + len(shared[-1]) if shared else end
        return tail, "", tail[end:]


def is_whole(answer: Message, text: str) -> bool:
    """Whether a text has the thought and the content of an answer, but for white space around."""
    parts = (answer.get("reasoning_content") or "", *re.split("</?think>", answer["content"]))
    return all(part.strip() in text for part in parts)


def _with_begun_thought(answer: Message, prompt: str) -> Message:
    """The answer with the `<think>` that a raw completion lacks where the prompt ends with it."""
    content = answer["content"]
    is_begun = prompt.rstrip().endswith("<think>") and "<think>" not in content
    if not is_begun or "</think>" not in content:
        return answer
    return answer | {"content": f"<think>\n{content}"}


def _with_probe(messages: list[Message]) -> list[Message]:
    return [*messages[:-1], *(message | {"content": _PROBE} for message in messages[-1:])]


def _whole(text: str) -> str | None:
    return text


def _after_probe(text: str) -> str | None:
    """What follows the probe, if it is there exactly once."""
    return text.partition(_PROBE)[2] if text.count(_PROBE) == 1 else None


def _replace_probe(text: str, replacement: str) -> str | None:
    return text.replace(_PROBE, replacement) if text.count(_PROBE) == 1 else None
