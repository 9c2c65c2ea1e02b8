"""A data set on disk as tokens: tokenized once, memory-mapped, read row by row.

No more than a few hundred rows are ever in memory, besides one number for each, so a data set may
be larger than memory.
"""

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from app.core.dataset.formats import read_examples
from app.core.job.training_config import OverlongRowBehavior
from worker.training.data.chat import ChatTemplateError
from worker.training.data.encoding import Encoded, Encoder
from worker.training.data.report import DataFile, DataReport, unsupported_chat

IGNORE_INDEX = -100
"""Label of a token that is read but not learned: prompt and padding."""

_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
_ROWS_PER_WRITE = 256


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    input_ids: np.ndarray
    labels: np.ndarray
    """The token itself where it is learned, else `IGNORE_INDEX`. The first is never learned:
    nothing predicts it."""


class TokenizedData:
    """The rows of one file that are trained or evaluated on, each with a token to learn.

    Attributes:
        lengths: tokens of each row.
        report: what was found while they were tokenized.
    """

    def __init__(self, path: Path, lengths: np.ndarray, report: DataReport) -> None:
        self._rows = Dataset.from_file(str(path)).with_format("numpy")
        self.lengths = lengths
        self.report = report

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> TokenizedRow:
        row = self._rows[int(index)]
        return TokenizedRow(row["input_ids"], row["labels"])


def tokenize_file(
    source: DataFile,
    target: Path,
    encoder: Encoder,
    *,
    max_tokens: int,
    overlong: OverlongRowBehavior,
) -> TokenizedData:
    """Tokenize `source` into the Arrow file `target`, and open that.

    Raises:
        TrainingFailedError: `row_too_long`, where that is an error; `no_trainable_tokens`, when
            no row has a token to learn; `chat_template_unsupported` or `no_chat_template`.
    """
    report = DataReport(source, max_tokens)
    lengths = array("i")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.path.open("rb") as lines,
        ArrowWriter(
            features=_FEATURES, path=str(target), writer_batch_size=_ROWS_PER_WRITE
        ) as writer,
    ):
        for line, example in read_examples(lines):
            try:
                encoded = encoder.encode(example)
            except ChatTemplateError as error:
                raise unsupported_chat(source, line, error) from error
            row = _fit(encoded, line, report, overlong)
            if row is not None:
                writer.write({"input_ids": row.input_ids, "labels": row.labels})
                lengths.append(len(row.input_ids))
        writer.finalize()
    report.raise_if_useless()
    return TokenizedData(target, np.array(lengths), report)


def _fit(
    encoded: Encoded, line: int, report: DataReport, overlong: OverlongRowBehavior
) -> TokenizedRow | None:
    """The row that is trained on, or None when it is left out."""
    tokens = len(encoded.input_ids)
    if tokens > report.max_tokens:
        if overlong == "error":
            report.refuse(line, tokens=tokens)
            return None
        if overlong == "drop":
            report.dropped += 1
            return None
        report.truncated += 1
    input_ids = np.array(encoded.input_ids[: report.max_tokens], dtype=np.int32)
    is_learned = np.array(encoded.is_learned[: report.max_tokens], dtype=bool)
    is_learned[:1] = False
    if not is_learned.any():
        report.leave_out_unlearnable(line)
        return None
    report.examples += 1
    report.tokens += len(input_ids)
    report.learned_tokens += int(is_learned.sum())
    return TokenizedRow(input_ids, np.where(is_learned, input_ids, IGNORE_INDEX).astype(np.int32))
