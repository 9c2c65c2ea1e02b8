"""Random conversations with every family of templates: answers are learned whole, and only they."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from operator import itemgetter
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.core.dataset.formats import ChatExample
from tests.chat_families import FAMILIES, build_encoder, build_tokenizer
from tests.effort import effort
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.encoding import Encoded

CHATS = effort(6, long=300)
"""Conversations per family."""

TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "Which."}},
            "required": ["x"],
        },
    },
}
_WORD = re.compile(r"W\d{4}z")
_SPACES = ("", "", " ", "\n", "\n\n", "\t")


class ChatWriter:
    """Writes conversations of words that occur once, such as W0001z."""

    def __init__(self, rng: random.Random, marks: Sequence[str]) -> None:
        self._rng = rng
        self._marks = ["", *marks] if rng.random() < 0.5 else [""]
        self._numbers = count()

    def write(self, *, with_tools: bool) -> ChatExample:
        rng = self._rng
        has_system = rng.random() < 0.4
        messages = [{"role": "system", "content": rng.choice(["", self._text()])}] * has_system
        for _ in range(rng.choice([1, 2, 3, 9])):
            messages.append({"role": "user", "content": self._text()})
            if with_tools and rng.random() < 0.6:
                messages += self._call()
            messages.append(self._answer())
        is_learned = [m["role"] == "assistant" and rng.random() < 0.7 for m in messages]
        is_learned[-1] |= not any(is_learned)
        return ChatExample(messages, is_learned, [TOOL] if with_tools else None)

    def _answer(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._text()}
        kind = self._rng.random()
        if kind < 0.3:
            return message | {"reasoning_content": self._text()}
        if kind < 0.4:
            return message | {"content": f"<think>\n{self._text()}\n</think>\n\n{self._text()}"}
        return message

    def _call(self) -> Iterator[dict[str, Any]]:
        calls = [
            {
                "id": f"call0000{index}",
                "type": "function",
                "function": {"name": "find", "arguments": json.dumps({"x": self._word()})},
            }
            for index in range(self._rng.choice([1, 1, 2]))
        ]
        content = self._rng.choice(["", "", self._text()])
        yield {"role": "assistant", "content": content, "tool_calls": calls}
        for call in calls:
            result = {"role": "tool", "content": self._text(), "name": "find"}
            yield result | {"tool_call_id": call["id"]}

    def _text(self) -> str:
        parts = (
            f"{self._rng.choice(self._marks)}{self._rng.choice(_SPACES)}{self._word()}"
            for _ in range(self._rng.choice([1, 2, 3]))
        )
        return " ".join(parts) + self._rng.choice(_SPACES)

    def _word(self) -> str:
        return f"W{next(self._numbers):04}z"


def write_chats(family: str, marks: Sequence[str], *, with_tools: bool) -> Iterator[ChatExample]:
    """Conversations, of which every second may have tools."""
    for number in range(CHATS):
        rng = random.Random(f"{family} {number}")  # noqa: S311 - repeatable
        yield ChatWriter(rng, marks).write(with_tools=with_tools and number % 2 == 1)


def learned_texts(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    tokens = zip(row.is_learned, row.input_ids, strict=True)
    return [
        str(tokenizer.decode([token for _, token in run]))
        for is_learned, run in groupby(tokens, key=itemgetter(0))
        if is_learned
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_words_of_the_learned_answers_are_learned(family: str) -> None:
    tokenizer = build_tokenizer(family)
    encoder = build_encoder(family, tokenizer)
    stops = (FAMILIES[family]["eos"], *FAMILIES[family]["special_tokens"])
    encoded = 0
    for example in write_chats(family, (*stops, "<think>", "</think>"), with_tools=True):
        try:
            rows = encoder.encode(example)
        except ChatTemplateError:
            continue
        encoded += 1
        texts = [text for row in rows for text in learned_texts(row, tokenizer)]
        learned = Counter(_WORD.findall("".join(texts)))
        expected = Counter(
            word
            for message, is_learned in zip(example.messages, example.is_learned, strict=True)
            for word in _WORD.findall(json.dumps(message))
            if is_learned
        )
        assert learned <= expected, example
        assert learned == expected or not all(row.is_whole for row in rows), example
        assert all(text.rstrip().endswith(stops) for text in texts), example
    assert encoded, "every conversation was refused"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_does_not_depend_on_texts_that_occur_twice(family: str) -> None:
    encoder = build_encoder(family, build_tokenizer(family))
    for example in write_chats(family, (), with_tools=False):
        same = json.loads(_WORD.sub("W0000z", json.dumps(example.messages)))
        try:
            rows = encoder.encode(example)
        except ChatTemplateError:
            continue

        alike = encoder.encode(ChatExample(same, example.is_learned))

        assert [row.is_learned for row in alike] == [row.is_learned for row in rows], example
