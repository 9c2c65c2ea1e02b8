"""Tokenizes a file into a dataset on disk, and takes note of what it finds."""

from pathlib import Path

import numpy as np

from app.core.dataset.reading import read_examples
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.cutting import cut
from worker.training.data.dataset import TokenWriter
from worker.training.data.encoding import Encoded, Encoder
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
        for line, example in read_examples(lines):
            try:
                rows = encoder.encode(example)
            except ChatTemplateError as error:
                findings.refuse_chat(line, error)
                continue
            findings.take(line, example, rows)
            for row in rows:
                _write(row, line, writer, findings, overlong)
    return findings, writer.sha256


def _write(
    encoded: Encoded,
    line: int,
    writer: TokenWriter,
    findings: FileFindings,
    overlong: OverlongRowBehavior,
) -> None:
    """Write the row that is trained on, unless it is left out."""
    limit = findings.max_sequence_tokens
    row = cut(encoded, max_tokens=limit, overlong=overlong)
    match row.outcome:
        case "too_long":
            findings.refuse_long(line, tokens=len(encoded.input_ids))
        case "dropped":
            findings.drop(line, row.is_learned)
        case "nothing_to_learn":
            findings.unlearnable.add(line)
        case _:
            findings.keep(row.is_learned)
            input_ids = np.array(row.input_ids, dtype=np.int32)
            writer.write(input_ids, np.array(row.is_learned, dtype=bool), line=line)
    if len(row.input_ids) < len(encoded.input_ids):
        findings.truncate(line, encoded.is_learned)
