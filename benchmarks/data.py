"""The data of a benchmark in the form that each trainer reads; the tokens are the same in all."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.docstrings import DataKind, Example, choose_examples, write_rows
from benchmarks.trainers.conversations import read_rows, render
from benchmarks.trainers.task import (
    CHATS_NAME,
    PAIRS_NAME,
    TEXTS_NAME,
    VALIDATION_NAME,
)


def write_data(
    directory: Path,
    model: Path,
    *,
    kind: DataKind,
    examples: int,
    validation: int,
    seed: int,
    max_tokens: int,
) -> dict[str, Any]:
    """Write all files of a data set. Returns how long its examples are.

    The reference script reads texts. It is given the conversations as the chat template renders
    them, so that all trainers read the same tokens; its speed depends on neither.
    """
    chosen = choose_examples(examples + validation, seed=seed, kind=kind)
    training, held_out = chosen[:examples], chosen[examples:]
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    write_rows(directory / TEXTS_NAME, [{"text": render(tokenizer, e.messages)} for e in training])
    write_rows(directory / PAIRS_NAME, [_pair(each) for each in training])
    write_rows(directory / CHATS_NAME, [{"messages": each.messages} for each in training])
    write_rows(directory / VALIDATION_NAME, [{"messages": each.messages} for each in held_out])
    rows = read_rows(directory / CHATS_NAME, tokenizer, max_tokens=max_tokens)
    lengths = sorted(len(row.input_ids) for row in rows)
    return {
        "kind": kind,
        "examples": examples,
        "median_tokens": lengths[examples // 2],
        "mean_tokens": sum(lengths) / examples,
        "longest_tokens": lengths[-1],
    }


def _pair(example: Example) -> dict[str, object]:
    *prompt, answer = example.messages
    return {"prompt": prompt, "completion": [answer]}
