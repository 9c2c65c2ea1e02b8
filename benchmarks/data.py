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
    write_rows(directory / PAIRS_NAME, [_row_of_trl(each) for each in training])
    write_rows(directory / CHATS_NAME, [_row(each) for each in training])
    write_rows(directory / VALIDATION_NAME, [_row(each) for each in held_out])
    rows = read_rows(directory / CHATS_NAME, tokenizer, max_tokens=max_tokens)
    lengths = sorted(len(row.input_ids) for row in rows)
    return {
        "kind": kind,
        "examples": examples,
        "median_tokens": lengths[len(lengths) // 2],
        "mean_tokens": sum(lengths) / len(lengths),
        "longest_tokens": lengths[-1],
    }


def _row(example: Example) -> dict[str, object]:
    return example.preference if example.worse_answer else {"messages": example.messages}


def _row_of_trl(example: Example) -> dict[str, object]:
    *prompt, answer = example.messages
    if not example.worse_answer:
        return {"prompt": prompt, "completion": [answer]}
    worse = [{"role": "assistant", "content": example.worse_answer}]
    return {"prompt": prompt, "chosen": [answer], "rejected": worse}
