"""Answers of a base model through API and sampler, streamed, to be timed."""

import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from app.core.base_models import DEFAULT_MODEL_ID

_DATA = "data: "
_END = "[DONE]"


@dataclass(frozen=True, slots=True)
class StreamTimes:
    first_s: float
    """From the request to the first text."""
    token_s: float
    """Mean over the later tokens."""


class StreamedAnswers:
    """Asks one question after the other, none of them twice.

    Args:
        base_url: of a service whose sampler answers with its default model.
    """

    def __init__(self, base_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=60)
        self._numbers = itertools.count()

    def time_answer(self, tokens: int) -> StreamTimes:
        """Time an answer of so many tokens, which needs a question whose answer is longer."""
        question = f"Write story number {next(self._numbers)}, a long one, about a lighthouse."
        body = {
            "model": DEFAULT_MODEL_ID,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s = time.perf_counter()
        texts_s: list[float] = []
        told = 0
        with self._client.stream("POST", "chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith(_DATA) or line == _DATA + _END:
                    continue
                chunk: dict[str, Any] = json.loads(line.removeprefix(_DATA))
                if usage := chunk.get("usage"):
                    told = usage["completion_tokens"]
                elif chunk["choices"][0]["delta"].get("content"):
                    texts_s.append(time.perf_counter())
        if told != tokens:
            raise ValueError(f"The answer has {told} tokens, instead of {tokens}.")
        return StreamTimes(texts_s[0] - began_s, (texts_s[-1] - texts_s[0]) / (tokens - 1))
