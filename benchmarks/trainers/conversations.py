"""Conversations as tokens and what is learned of them, without any code of Tunery's.

Whoever checks a mask must not take it from what is checked, so this one knows ChatML and nothing
else: the benchmark's models all speak it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Row:
    input_ids: list[int]
    first_learned: int
    """Position of the answer's first token. It and all after it are learned."""

    @property
    def learned(self) -> int:
        return len(self.input_ids) - self.first_learned


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False)


def _read_answers(path: Path) -> Iterator[tuple[list[dict[str, str]], dict[str, str]]]:
    """Each answer after the messages before it."""
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "messages" in row:
            *before, answer = row["messages"]
            yield before, answer
            continue
        for key in ("preferred_output", "non_preferred_output"):
            yield row["input"]["messages"], row[key][0]


def read_rows(path: Path, tokenizer: Any, *, max_tokens: int) -> list[Row]:
    """The rows of a file of `messages`, cut as all trainers cut them; two of each preference.

    After the token that ends the answer, the template writes a line break. It is read, and counted,
    but never learned; as the last token of a row it influences nothing, and is left out here.
    """
    rows: list[Row] = []
    for before, answer in _read_answers(path):
        prompt: str = tokenizer.apply_chat_template(
            before, tokenize=False, add_generation_prompt=True
        )
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, answer["content"] + END_OF_TURN)
        ]
        rows.append(Row([*ids[0], *ids[1]][:max_tokens], len(ids[0])))
    return rows
