"""Tokenizes a file into a dataset on disk, and takes note of what it finds."""

from pathlib import Path

import numpy as np

from app.core.dataset.reading import read_examples
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.dataset import TokenWriter
from worker.training.data.encoding import Encoder
from worker.training.preparation.content import ContentCheck
from worker.training.preparation.findings import DataFile, FileFindings, WholeRow


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
        for line, example in read_examples(lines):
            try:
                encoded = encoder.encode(example)
            except ChatTemplateError as error:
                findings.refuse_chat(line, error)
                continue
            rows = [WholeRow.of(row, line) for row in encoded]
            findings.take(line, example, rows)
            for row in rows:
                _write(row, writer, findings, overlong)
    return findings, writer.sha256


def _write(
    row: WholeRow, writer: TokenWriter, findings: FileFindings, overlong: OverlongRowBehavior
) -> None:
    """Write the row that is trained on, unless it is left out."""
    limit = findings.max_sequence_tokens
    if len(row) > limit:
        if overlong == "error":
            return findings.refuse_long(row)
        if overlong == "drop":
            return findings.drop(row)
        findings.truncate(row)
    is_learned = row.is_learned[:limit]
    learned = int(np.count_nonzero(is_learned))
    if learned == 0:
        return findings.unlearnable.add(row.line)
    findings.tokens += len(is_learned)
    findings.learned_lengths.append(learned)
    return writer.write(row.input_ids[:limit], is_learned, line=row.line)
