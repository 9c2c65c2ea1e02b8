"""Tokenizes a file into a dataset on disk, and takes note of what it finds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from app.core.dataset.formats import LineError, ParsedExample
from app.core.dataset.reading import read_examples
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.cutting import cut_example, group_rows
from worker.training.data.dataset import TokenWriter
from worker.training.data.encoding import Encoded, Encoder
from worker.training.failures import TrainingFailedError
from worker.training.preparation.content import ContentCheck
from worker.training.preparation.findings import DataFile, FileFindings


def tokenize_file(
    source: DataFile,
    target: Path,
    encoder: Encoder,
    *,
    max_sequence_tokens: int,
    overlong: OverlongRowBehavior,
) -> tuple[FileFindings, str]:
    """Tokenize `source` into the directory `target`, as a dataset that its `param` names.

    Returns:
        What was found, and the digest of the dataset. If the file cannot be used, the dataset is
        not whole.
    """
    findings = FileFindings(source, max_sequence_tokens, ContentCheck(encoder.special_tokens))
    target.mkdir(parents=True, exist_ok=True)
    with source.path.open("rb") as lines, TokenWriter(target, source.param) as writer:
        for line, example in _read(lines, source):
            try:
                rows = encoder.encode(example)
            except ChatTemplateError as error:
                findings.refuse_chat(line, error)
                continue
            findings.take(line, example, rows)
            for together in group_rows(example, rows):
                _write(together, line, writer, findings, overlong)
    return findings, writer.sha256


def _read(lines: BinaryIO, source: DataFile) -> Iterator[tuple[int, ParsedExample]]:
    try:
        yield from read_examples(lines)
    except LineError as error:  # an earlier release has accepted the file
        raise TrainingFailedError(
            "invalid_file", f"{source.filename}: {error} Upload it again.", param=source.param
        ) from error


def _write(
    rows: Sequence[Encoded],
    line: int,
    writer: TokenWriter,
    findings: FileFindings,
    overlong: OverlongRowBehavior,
) -> None:
    """Write the rows of an example that are trained on, unless it is left out."""
    limit = findings.max_sequence_tokens
    kept = cut_example(rows, max_tokens=limit, overlong=overlong)
    match kept[0].outcome:
        case "too_long":
            findings.refuse_long(line, tokens=max(len(row.input_ids) for row in rows))
        case "dropped":
            findings.drop(line, [row.is_learned for row in kept])
        case "nothing_to_learn":
            findings.unlearnable.add(line)
        case "equal_answers":
            findings.equal_answers.add(line)
        case _:
            findings.keep([row.is_learned for row in kept])
            for row in kept:
                input_ids = np.array(row.input_ids, dtype=np.int32)
                writer.write(input_ids, np.array(row.is_learned, dtype=bool), line=line)
    whole = zip(rows, kept, strict=True)
    if cut_off := [a.is_learned for a, b in whole if len(b.input_ids) < len(a.input_ids)]:
        findings.truncate(line, cut_off)
