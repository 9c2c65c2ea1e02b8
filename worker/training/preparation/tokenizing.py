"""Tokenizes a file into a dataset on disk, and takes note of what it finds."""

from pathlib import Path

import numpy as np

from app.core.dataset.reading import read_examples
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.chat_template import ChatTemplateError
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
    limit, tokens = findings.max_sequence_tokens, len(encoded.input_ids)
    is_learned = np.array(encoded.is_learned, dtype=bool)
    is_learned[:1] = False
    if tokens > limit:
        if overlong == "error":
            return findings.refuse_long(line, tokens=tokens)
        if overlong == "drop":
            return findings.drop(line, is_learned)
        findings.truncate(line, is_learned)
    is_learned = is_learned[:limit]
    if not is_learned.any():
        return findings.unlearnable.add(line)
    findings.tokens += len(is_learned)
    findings.learned_lengths.append(int(is_learned.sum()))
    input_ids = np.array(encoded.input_ids[:limit], dtype=np.int32)
    return writer.write(input_ids, is_learned, line=line)
