"""What tokenizing a file found, in the words its owner reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.core.dataset.checker import MAX_PROBLEMS
from app.core.job.training_events import DataProblem, Noted
from worker.training.data.chat import ChatTemplateError
from worker.training.failures import TrainingFailedError

_LINES_NAMED = 10
"""Line numbers in a message; the rest is only counted."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to tokenize, and how to speak of it."""

    path: Path
    filename: str
    """As the user named it."""
    param: str
    """The field of the job that names it."""


@dataclass(slots=True)
class DataReport:
    """Counts the examples of a file, and those that are not trained on as they are."""

    file: DataFile
    max_tokens: int
    examples: int = 0
    """Those that are trained or evaluated on."""
    tokens: int = 0
    learned_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    refused: list[DataProblem] = field(default_factory=list)
    """The first `MAX_PROBLEMS` of those that fail the job because they are too long."""
    refused_count: int = 0
    unlearnable: int = 0
    """Left out because no token of them is learned."""
    unlearnable_lines: list[int] = field(default_factory=list)

    def refuse(self, line: int, *, tokens: int) -> None:
        self.refused_count += 1
        if len(self.refused) < MAX_PROBLEMS:
            message = f"{tokens:,} tokens; at most {self.max_tokens:,} are read."
            self.refused.append(
                DataProblem(line=line, path="", code="row_too_long", message=message)
            )

    def leave_out_unlearnable(self, line: int) -> None:
        self.unlearnable += 1
        if len(self.unlearnable_lines) < _LINES_NAMED:
            self.unlearnable_lines.append(line)

    def raise_if_useless(self) -> None:
        """Refuse a file of which nothing can be learned, or in which a row is too long.

        Raises:
            TrainingFailedError: `row_too_long` or `no_trainable_tokens`.
        """
        name = self.file.filename
        if self.refused_count:
            raise TrainingFailedError(
                "row_too_long",
                f"{self.refused_count:,} examples of {name} are longer than {self.max_tokens:,} "
                "tokens. Shorten them, raise context_length, or set overlong_row_behavior to "
                "truncate or drop.",
                param=self.file.param,
                problems=self.refused,
            )
        if self.examples == 0:
            raise TrainingFailedError(
                "no_trainable_tokens",
                f"No example of {name} has a token to learn: {self.dropped:,} are too long and "
                f"were left out, and of {self.unlearnable:,} nothing is left to learn within "
                f"{self.max_tokens:,} tokens. Raise context_length, or shorten the prompts.",
                param=self.file.param,
            )

    def notes(self) -> Iterator[Noted]:
        """A line on the file, and a warning for each oddity."""
        name = self.file.filename
        yield Noted(
            message=f"{name}: {self.examples:,} examples, {self.tokens:,} tokens, "
            f"{self.learned_tokens:,} of them learned, {self.truncated:,} examples truncated."
        )
        longer = f"examples are longer than {self.max_tokens:,} tokens"
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


def unsupported_chat(file: DataFile, line: int, error: ChatTemplateError) -> TrainingFailedError:
    """The failure of a job whose base model cannot render one of its conversations."""
    return TrainingFailedError(
        error.code,
        f"Line {line} of {file.filename} cannot be learned by this base model: {error}.",
        param=file.param,
        problems=[DataProblem(line=line, path="messages", code=error.code, message=str(error))],
    )


def _warning(message: str) -> Noted:
    return Noted(level="warn", message=message)
