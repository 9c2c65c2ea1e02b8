"""OpenAI's walk-through "Data preparation and analysis for chat model fine-tuning", and our counts.

The walk-through checks the format of a file, counts its messages and tokens, and says which
examples will be truncated. It is written here from its description, with the tokenizer of the base
model in place of tiktoken. The data is that of the walk-through, from OpenAI's cookbook
(`examples/data/toy_chat_fine_tuning.jsonl`, MIT licence).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.core.dataset.checker import DatasetChecker
from app.core.job.child.job_spec import DatasetRef
from worker.training.data.dataset import TokenizedData
from worker.training.data.encoding import Encoder
from worker.training.preparation.findings import DataFile, FileFindings
from worker.training.preparation.tokenizing import tokenize_file

LIMIT = 4096
"""Tokens of an example after which the walk-through warns that it will be truncated."""

HAPPY = ("system", "You are a happy assistant that puts a positive spin on everything.")
CHATS = [
    [
        HAPPY,
        ("user", "I fell off my bike today."),
        ("assistant", "It's great that you're getting exercise outdoors!"),
    ],
    [
        HAPPY,
        ("user", "I lost my tennis match today."),
        ("assistant", "It's ok, it happens to everyone."),
        ("user", "But I trained so hard!"),
        ("assistant", "It will pay off next time."),
        ("user", "I'm going to switch to golf."),
        ("assistant", "Golf is fun too!"),
        ("user", "I don't even know how to play golf."),
        ("assistant", "It's easy to learn!"),
    ],
    [
        ("user", "I lost my book today."),
        ("assistant", "You can read everything on ebooks these days!"),
    ],
    [HAPPY, ("assistant", "You're great!")],
    [HAPPY, ("user", "I'm hungry."), ("assistant", "Eat a banana!" * 2000)],
]
ROWS = [
    {"messages": [{"role": role, "content": content} for role, content in chat]} for chat in CHATS
]


@dataclass(frozen=True)
class Counts:
    """What the walk-through prints, before it makes distributions of it."""

    without_system: int
    without_user: int
    messages: list[int]
    tokens: list[int]
    assistant_tokens: list[int]

    @property
    def too_long(self) -> int:
        return sum(tokens > LIMIT for tokens in self.tokens)

    @property
    def billed(self) -> int:
        return sum(min(tokens, LIMIT) for tokens in self.tokens)


def walk_through(
    rows: list[dict[str, Any]],
    count: Callable[[str], int],
    *,
    per_message: int = 3,
    per_example: int = 3,
) -> Counts:
    chats = [row["messages"] for row in rows]
    return Counts(
        without_system=sum(all(m["role"] != "system" for m in chat) for chat in chats),
        without_user=sum(all(m["role"] != "user" for m in chat) for chat in chats),
        messages=[len(chat) for chat in chats],
        tokens=[
            per_example + sum(per_message + count(m["role"]) + count(m["content"]) for m in chat)
            for chat in chats
        ],
        assistant_tokens=[
            sum(count(m["content"]) for m in chat if m["role"] == "assistant") for chat in chats
        ],
    )


@pytest.fixture(scope="module")
def tokenizer(embedded_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(embedded_model_dir)


@pytest.fixture(scope="module")
def count(tokenizer: Any) -> Callable[[str], int]:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return count


def tokenize(
    tokenizer: Any, directory: Path, *, max_sequence_tokens: int
) -> tuple[FileFindings, TokenizedData]:
    source = directory / "toy_chat_fine_tuning.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    reference = DatasetRef(
        file_id="file-1", filename=source.name, sha256="e" * 64, bytes=1, examples=len(ROWS)
    )
    findings, sha256 = tokenize_file(
        DataFile(source, reference, "training_file"),
        directory / "tokens",
        Encoder(tokenizer, today=date(2026, 1, 31)),
        max_sequence_tokens=max_sequence_tokens,
        overlong="truncate",
    )
    return findings, TokenizedData(directory / "tokens", "training_file", sha256=sha256)


def test_it_counts_messages_as_published(count: Callable[[str], int]) -> None:
    counts = walk_through(ROWS, count)

    assert (counts.without_system, counts.without_user) == (1, 1)
    assert (min(counts.messages), max(counts.messages), sum(counts.messages) / 5) == (2, 9, 3.8)
    assert counts.too_long == 1


def test_learned_tokens_are_its_assistant_tokens_and_one_that_ends_each_answer(
    tokenizer: Any, count: Callable[[str], int], tmp_path: Path
) -> None:
    findings, data = tokenize(tokenizer, tmp_path, max_sequence_tokens=10_000)
    counts = walk_through(ROWS, count)

    learned = [int((data.read(index).labels >= 0).sum()) for index in range(len(data))]
    answers = [sum(role == "assistant" for role, _ in chat) for chat in CHATS]
    assert answers == [1, 4, 1, 1, 1]
    assert learned == [
        tokens + ends for tokens, ends in zip(counts.assistant_tokens, answers, strict=True)
    ]
    assert findings.learned_tokens == sum(counts.assistant_tokens) + 8


def test_tokens_and_truncated_examples_are_its_own_with_what_this_template_writes(
    tokenizer: Any, count: Callable[[str], int], tmp_path: Path
) -> None:
    """The walk-through estimates 3 tokens for a message, and 3 that ask for the next answer.

    This template writes 4 for a message, does not ask for another answer, and begins with a system
    message of its own if there is none.
    """
    findings, data = tokenize(tokenizer, tmp_path, max_sequence_tokens=LIMIT)
    default = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    content = default.removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
    system = {"role": "system", "content": content}
    rows = [
        {"messages": row["messages"] if chat[0] == HAPPY else [system, *row["messages"]]}
        for row, chat in zip(ROWS, CHATS, strict=True)
    ]
    counts = walk_through(rows, count, per_message=4, per_example=0)

    assert data.lengths.tolist() == [min(tokens, LIMIT) for tokens in counts.tokens]
    assert findings.tokens == counts.billed
    assert findings.truncated.count == counts.too_long == 1
    assert findings.examples == len(ROWS)


QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}

BAD_ROWS = {
    "data_type": (["messages"], "not_an_object"),
    "missing_messages_list": ({"messages": []}, "wrong_type"),
    "message_missing_key": ({"messages": [QUESTION, {"role": "assistant"}]}, "missing_field"),
    "message_unrecognized_key": (
        {"messages": [QUESTION, ANSWER | {"mood": "happy"}]},
        "unknown_field",
    ),
    "unrecognized_role": ({"messages": [QUESTION, ANSWER | {"role": "bot"}]}, "bad_role"),
    "missing_content": ({"messages": [QUESTION, ANSWER | {"content": ""}]}, "empty_field"),
    "example_missing_assistant_message": ({"messages": [QUESTION]}, "no_assistant_message"),
}
"""A row for each error of the walk-through, and the code of ours."""


def test_every_format_error_of_the_walk_through_is_reported_with_its_line() -> None:
    checker = DatasetChecker()
    good = {"messages": [QUESTION, ANSWER]}
    for row in [good, *(row for row, _ in BAD_ROWS.values())]:
        checker.feed(json.dumps(row).encode() + b"\n")

    problems = checker.finish().problems

    by_line = {
        line: {problem.code for problem in group}
        for line, group in groupby(problems, key=lambda problem: problem.line)
    }
    assert by_line == {line: {code} for line, (_, code) in enumerate(BAD_ROWS.values(), 2)}


def test_the_data_of_the_walk_through_has_no_format_error() -> None:
    checker = DatasetChecker()
    for row in ROWS:
        checker.feed(json.dumps(row).encode() + b"\n")

    summary = checker.finish()

    assert summary.problems == []
    assert summary.examples == 5
