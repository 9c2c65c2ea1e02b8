"""A dataset on disk as tokens: tokenized once, memory-mapped, read row by row.

Memory holds a few hundred rows at most, and one number per row, so a dataset may be larger than
memory.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from app.core.dataset.formats import MAX_PROBLEMS
from app.core.dataset.reading import read_examples
from app.core.job.training_config import OverlongRowBehavior
from app.core.job.training_events import DataProblem, Noted
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.cutting import cut
from worker.training.data.encoding import Encoded, Encoder
from worker.training.failures import TrainingFailedError

IGNORE_INDEX = -100
"""Label of a token that is read but not learned: prompt and padding."""

_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
_ROWS_PER_WRITE = 256
_LINES_NAMED = 10
"""How many line numbers a message lists; the remaining lines are only counted."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to tokenize, and the names that messages use for it."""

    path: Path
    filename: str
    """Name that the user gave the file."""
    param: str
    """Field of the job that names the file, as the API spells it."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    input_ids: np.ndarray
    labels: np.ndarray
    """The token itself where it is learned, otherwise `IGNORE_INDEX`. The first token is never
    learned, because nothing predicts it."""


@dataclass(slots=True)
class DataReport:
    """Counts the examples of a file, and those that are not trained on as they are.

    An example is a line of the file, or one of several rows that a line becomes.
    """

    file: DataFile
    max_sequence_tokens: int
    examples: int = 0
    """Examples that are trained or evaluated on."""
    tokens: int = 0
    learned_tokens: int = 0
    split_chats: int = 0
    """Lines that became several examples, each of which ends with one learned answer."""
    split_examples: int = 0
    """Examples that these lines became."""
    truncated: int = 0
    dropped: int = 0
    too_long: list[DataProblem] = field(default_factory=list)
    """The first `MAX_PROBLEMS` examples that fail the job because they are too long."""
    too_long_count: int = 0
    unlearnable: int = 0
    """Examples that were left out because no token of them is learned."""
    unlearnable_lines: list[int] = field(default_factory=list)

    def count_split(self, examples: int) -> None:
        """Take note of a line that became so many examples."""
        if examples > 1:
            self.split_chats += 1
            self.split_examples += examples

    def refuse(self, line: int, *, tokens: int) -> None:
        self.too_long_count += 1
        if len(self.too_long) < MAX_PROBLEMS:
            message = (
                f"The example has {tokens:,} tokens; the limit is {self.max_sequence_tokens:,}."
            )
            self.too_long.append(
                DataProblem(line=line, path="", code="row_too_long", message=message)
            )

    def leave_out_unlearnable(self, line: int) -> None:
        self.unlearnable += 1
        if len(self.unlearnable_lines) < _LINES_NAMED and line not in self.unlearnable_lines[-1:]:
            self.unlearnable_lines.append(line)

    def raise_if_useless(self) -> None:
        """Refuse a file in which nothing can be learned or a row is too long.

        Raises:
            TrainingFailedError: `row_too_long` or `no_trainable_tokens`.
        """
        name = self.file.filename
        if self.too_long_count:
            raise TrainingFailedError(
                "row_too_long",
                f"{self.too_long_count:,} examples of {name} are longer than "
                f"{self.max_sequence_tokens:,} tokens. Shorten them, raise context_length, or set "
                "overlong_row_behavior to truncate or drop.",
                param=self.file.param,
                problems=self.too_long,
            )
        if self.examples == 0:
            raise TrainingFailedError(
                "no_trainable_tokens",
                f"No example of {name} has a token to learn: {self.dropped:,} were left out "
                f"because they are too long, and {self.unlearnable:,} have nothing to learn within "
                f"{self.max_sequence_tokens:,} tokens. Raise context_length, or shorten the "
                "prompts.",
                param=self.file.param,
            )

    def notes(self) -> Iterator[Noted]:
        """A summary of the file, and a warning for each oddity."""
        name = self.file.filename
        yield Noted(
            message=f"{name}: {self.examples:,} examples, {self.tokens:,} tokens, "
            f"{self.learned_tokens:,} of them learned, {self.truncated:,} examples truncated."
        )
        if self.split_chats:
            yield Noted(
                message=f"{name}: {self.split_chats:,} conversations became "
                f"{self.split_examples:,} examples, one for each learned answer, because the chat "
                "template writes earlier messages differently once others follow."
            )
        longer = f"examples are longer than {self.max_sequence_tokens:,} tokens"
        if self.truncated:
            yield _warning(f"{name}: {self.truncated:,} {longer}; their ends were cut off.")
        if self.dropped:
            yield _warning(f"{name}: {self.dropped:,} {longer} and were left out.")
        if self.unlearnable:
            lines = ", ".join(str(line) for line in self.unlearnable_lines)
            more = ", ..." if self.unlearnable > len(self.unlearnable_lines) else ""
            yield _warning(
                f"{name}: {self.unlearnable:,} examples have no token left to learn and were left "
                f"out (lines {lines}{more})."
            )


class TokenizedData:
    """The rows of one file that are trained or evaluated on, each with a token to learn.

    Attributes:
        lengths: tokens of each row.
        report: what tokenizing the file found.
        sha256: digest of all tokens, and of which of them are learned.
    """

    def __init__(self, path: Path, lengths: np.ndarray, report: DataReport, sha256: str) -> None:
        self._rows = Dataset.from_file(str(path)).with_format("numpy")
        self.lengths = lengths
        self.report = report
        self.sha256 = sha256

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
    max_sequence_tokens: int,
    overlong: OverlongRowBehavior,
) -> TokenizedData:
    """Tokenize `source` into the Arrow file `target`, and open that.

    Raises:
        TrainingFailedError: `row_too_long`, where that is an error; `no_trainable_tokens`, when
            no row has a token to learn; `chat_template_unsupported` or `no_chat_template`.
    """
    report = DataReport(source, max_sequence_tokens)
    lengths = array("i")
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.path.open("rb") as lines,
        ArrowWriter(
            features=_FEATURES, path=str(target), writer_batch_size=_ROWS_PER_WRITE
        ) as writer,
    ):
        for line, example in read_examples(lines):
            try:
                rows = encoder.encode(example)
            except ChatTemplateError as error:
                raise _unsupported_chat(source, line, error) from error
            report.count_split(len(rows))
            for encoded in rows:
                row = _cut(encoded, line, report, overlong)
                if row is not None:
                    writer.write({"input_ids": row.input_ids, "labels": row.labels})
                    lengths.append(len(row.input_ids))
                    for part in (lengths[-1:], row.input_ids, row.labels):
                        digest.update(part.tobytes())
        writer.finalize()
    report.raise_if_useless()
    return TokenizedData(target, np.array(lengths), report, digest.hexdigest())


def _cut(
    encoded: Encoded, line: int, report: DataReport, overlong: OverlongRowBehavior
) -> TokenizedRow | None:
    """The row that is trained on, or None when it is left out."""
    limit, tokens = report.max_sequence_tokens, len(encoded.input_ids)
    row = cut(encoded, max_tokens=limit, overlong=overlong)
    if row.outcome == "too_long":
        report.refuse(line, tokens=tokens)
        return None
    if row.outcome == "dropped":
        report.dropped += 1
        return None
    report.truncated += tokens > limit
    if row.outcome == "nothing_to_learn":
        report.leave_out_unlearnable(line)
        return None
    input_ids = np.array(row.input_ids, dtype=np.int32)
    is_learned = np.array(row.is_learned, dtype=bool)
    report.examples += 1
    report.tokens += len(input_ids)
    report.learned_tokens += int(is_learned.sum())
    return TokenizedRow(input_ids, np.where(is_learned, input_ids, IGNORE_INDEX).astype(np.int32))


def _unsupported_chat(file: DataFile, line: int, error: ChatTemplateError) -> TrainingFailedError:
    """The failure of a job whose base model cannot render one of its conversations."""
    return TrainingFailedError(
        error.code,
        f"Line {line} of {file.filename} does not fit this base model: {error}.",
        param=file.param,
        problems=[DataProblem(line=line, path="messages", code=error.code, message=str(error))],
    )


def _warning(message: str) -> Noted:
    return Noted(level="warn", message=message)
