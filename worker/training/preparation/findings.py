"""What tokenizing a file finds: counts, why it cannot be used, and what is probably a mistake."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from app.core.dataset.formats import MAX_PROBLEMS, ParsedExample, PreferenceExample
from app.core.job.child.job_spec import DatasetRef
from app.core.job.child.training_events import DataProblem, Noted
from app.core.job.data_report import DataWarning, FileParam
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.encoding import Encoded
from worker.training.failures import TrainingFailedError
from worker.training.preparation.content import ContentCheck
from worker.training.preparation.named_lines import NamedLines
from worker.training.preparation.repeats import LineDigests
from worker.training.preparation.statistics import Longest

_FEW_EXAMPLES = 10
"""Number of examples below which training rarely teaches anything. OpenAI refuses fewer."""

_SMALL_PART = 0.02
"""Part of the tokens that are learned below which masks or data are probably not as meant."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to tokenize, and the names that messages use for it."""

    path: Path
    reference: DatasetRef
    param: FileParam
    """Field of the job that names the file, as the API spells it."""

    @property
    def filename(self) -> str:
        """Name that the user gave the file."""
        return self.reference.filename


@dataclass
class FileFindings:
    """Counts the examples of a file, and those that are not trained on as they are.

    An example is a line of the file, or one of several rows that a line becomes. The two rows of a
    preference are one example.
    """

    file: DataFile
    max_sequence_tokens: int
    content: ContentCheck
    digests: LineDigests = field(default_factory=LineDigests)
    """Digests of all tokens of each line, and of which of them are learned."""
    lines: int = 0
    """Lines with an example."""
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens of each example, before any is cut off or left out. Those of the longer answer, with
    its prompt, for a preference."""
    longest: Longest = field(default_factory=Longest)
    tokens: int = 0
    """Tokens of the examples that are trained or evaluated on."""
    learned_lengths: "array[int]" = field(default_factory=lambda: array("i"))
    """Learned tokens of each of these examples."""
    split_chats: int = 0
    """Lines that became several examples, each of which ends with one learned answer."""
    split_examples: int = 0
    """Examples that these lines became."""
    incomplete: NamedLines = field(default_factory=NamedLines)
    """Conversations with a learned answer that the chat template does not write as it is."""
    truncated: NamedLines = field(default_factory=NamedLines)
    dropped: NamedLines = field(default_factory=NamedLines)
    lost_learned_tokens: int = 0
    """Learned tokens that were cut off or dropped."""
    lost_ends: NamedLines = field(default_factory=NamedLines)
    """Answers whose end, with the token that stops the model, was cut off."""
    unlearnable: NamedLines = field(default_factory=NamedLines)
    """Examples that were left out because no token of them is learned."""
    equal_answers: NamedLines = field(default_factory=NamedLines)
    """Preferences that were left out because the tokens of both answers are the same."""
    too_long: list[DataProblem] = field(default_factory=list[DataProblem])
    """The first `MAX_PROBLEMS` examples that refuse the job because they are too long."""
    too_long_count: int = 0
    unsupported: list[DataProblem] = field(default_factory=list[DataProblem])
    """The first `MAX_PROBLEMS` conversations that the chat template cannot render."""
    unsupported_count: int = 0

    @property
    def examples(self) -> int:
        """Number of examples that are trained or evaluated on."""
        return len(self.learned_lengths)

    @property
    def learned_tokens(self) -> int:
        return sum(self.learned_lengths)

    @property
    def left_empty(self) -> int:
        """Number of examples that were left out because there is nothing to learn from them."""
        return self.unlearnable.count + self.equal_answers.count

    @cached_property
    def duplicates(self) -> NamedLines:
        """Lines that are the same as an earlier one. Ask only after the last line."""
        return self.digests.find_repeats()

    def take(self, line: int, example: ParsedExample, rows: Sequence[Encoded]) -> None:
        """Take note of a line and what it became."""
        self.lines += 1
        self.content.add(line, example)
        is_pair = isinstance(example, PreferenceExample)
        lengths, parts = list[int](), list[bytes]()
        for row in rows:
            lengths.append(len(row.input_ids))
            parts += [np.array(row.input_ids, np.int32).tobytes(), bytes(row.is_learned)]
        for length in [max(lengths)] if is_pair else lengths:
            self.lengths.append(length)
            self.longest.add(line, length)
        self.digests.add(line, parts)
        if not all(row.is_whole for row in rows):
            self.incomplete.add(line)
        if len(rows) > 1 and not is_pair:
            self.split_chats += 1
            self.split_examples += len(rows)

    def refuse_chat(self, line: int, error: ChatTemplateError) -> None:
        """Take note of a conversation that the chat template cannot render."""
        self.lines += 1
        self.unsupported_count += 1
        if len(self.unsupported) < MAX_PROBLEMS:
            self.unsupported.append(
                DataProblem(line=line, path="messages", code=error.code, message=str(error))
            )

    def refuse_long(self, line: int, *, tokens: int) -> None:
        """Take note of an example that is too long where that is an error."""
        self.too_long_count += 1
        if len(self.too_long) < MAX_PROBLEMS:
            message = (
                f"The example has {tokens:,} tokens; the limit is {self.max_sequence_tokens:,}."
            )
            self.too_long.append(
                DataProblem(line=line, path="", code="row_too_long", message=message)
            )

    def keep(self, masks: Sequence[Sequence[bool]]) -> None:
        """Take note of an example that is trained or evaluated on: which tokens its rows learn."""
        self.tokens += sum(map(len, masks))
        self.learned_lengths.append(sum(map(sum, masks)))

    def drop(self, line: int, masks: Sequence[Sequence[bool]]) -> None:
        """Take note of an example that is left out because it is too long."""
        self.dropped.add(line)
        self.lost_learned_tokens += sum(map(sum, masks))

    def truncate(self, line: int, masks: Sequence[Sequence[bool]]) -> None:
        """Take note of an example whose end is cut off.

        Args:
            line: its line.
            masks: whether each token is learned, of all tokens of each row that is cut.
        """
        self.truncated.add(line)
        for is_learned in masks:
            lost = is_learned[self.max_sequence_tokens :]
            self.lost_learned_tokens += sum(lost)
            for now, following in pairwise([*lost, False]):
                if now and not following:  # an answer ends here
                    self.lost_ends.add(line)

    def failure(self) -> TrainingFailedError | None:
        """Why the file cannot be used. None if it can.

        The code is `chat_template_unsupported`, `no_chat_template`, `row_too_long` or
        `no_trainable_tokens`.
        """
        name = self.file.filename
        if self.unsupported:
            return _unsupported(self.file, self.unsupported, self.unsupported_count)
        if self.too_long_count:
            return TrainingFailedError(
                "row_too_long",
                f"{self.too_long_count:,} examples of {name} are longer than "
                f"{self.max_sequence_tokens:,} tokens. Shorten them, raise context_length, or set "
                "overlong_row_behavior to truncate or drop.",
                param=self.file.param,
                problems=self.too_long,
            )
        if self.examples == 0:
            return TrainingFailedError(
                "no_trainable_tokens",
                f"No example of {name} has a token to learn: {self.dropped.count:,} were left out "
                f"because they are too long, and {self.left_empty:,} have nothing to learn "
                f"within {self.max_sequence_tokens:,} tokens. Raise context_length, or shorten the "
                "prompts.",
                param=self.file.param,
            )
        return None

    def notes(self) -> Iterator[Noted]:
        """What there is to learn."""
        name = self.file.filename
        yield Noted(
            message=f"{name}: {self.examples:,} examples, {self.tokens:,} tokens, "
            f"{self.learned_tokens:,} of them learned, {self.truncated.count:,} examples truncated."
        )
        if self.split_chats:
            yield Noted(
                message=f"{name}: {self.split_chats:,} conversations became "
                f"{self.split_examples:,} examples, one for each learned answer, because the chat "
                "template writes earlier messages differently once others follow."
            )

    def warnings(self) -> Iterator[DataWarning]:
        """A warning for each oddity."""
        param = self.file.param
        yield from self._warn_of_lengths(param)
        yield from self.incomplete.warn(
            "answer_not_whole",
            "Conversations in which the chat template leaves out or changes a part of an answer, "
            "such as reasoning_content or the content beside tool_calls: {count}. Only what the "
            "template writes is learned.",
            param,
        )
        yield from self.duplicates.warn(
            "duplicate",
            "Lines that are exactly the same as an earlier line: {count}. They count several "
            "times. Remove them, unless that is meant.",
            param,
        )
        yield from self.content.warnings(param)
        yield from self._warn_of_little(param)

    def _warn_of_lengths(self, param: FileParam) -> Iterator[DataWarning]:
        longer = f"Examples longer than {self.max_sequence_tokens:,} tokens: {{count}}."
        lost = f"{self.lost_learned_tokens:,} learned tokens"
        advice = "Raise context_length, or shorten them."
        yield from self.truncated.warn(
            "truncated", f"{longer} Their ends were cut off, with {lost}. {advice}", param
        )
        yield from self.lost_ends.warn(
            "stop_token_cut_off",
            "Answers whose end was cut off, with the token that stops the model: {count}. The "
            f"model may learn to run on. {advice}",
            param,
        )
        yield from self.dropped.warn(
            "dropped", f"{longer} They were left out, with {lost}. {advice}", param
        )
        yield from self.unlearnable.warn(
            "nothing_to_learn",
            "Examples with no token left to learn: {count}. They were left out. Raise "
            "context_length, shorten the prompts, or set the weight of an answer to 1.",
            param,
        )
        yield from self.equal_answers.warn(
            "equal_answers",
            "Preferences of which both answers have the same tokens: {count}. They were left out. "
            f"{advice}",
            param,
        )

    def _warn_of_little(self, param: FileParam) -> Iterator[DataWarning]:
        if 0 < self.examples < _FEW_EXAMPLES and param == "training_file":
            yield DataWarning(
                code="few_examples",
                message=f"There are only {self.examples:,} examples to train on. Add more: 50 to "
                "100 good ones usually show a clear improvement.",
                param=param,
                count=self.examples,
            )
        if 0 < self.learned_tokens < _SMALL_PART * self.tokens:
            yield DataWarning(
                code="few_learned_tokens",
                message=f"Only {self.learned_tokens:,} of {self.tokens:,} tokens are learned; the "
                "rest is prompt. Check train_on and the weights of the answers, and shorten the "
                "prompts if they need not be so long.",
                param=param,
                count=self.learned_tokens,
            )


def _unsupported(
    file: DataFile, problems: Sequence[DataProblem], count: int
) -> TrainingFailedError:
    """The failure of a job whose base model cannot render some of its conversations."""
    first = problems[0]
    others = f" {count - 1:,} other lines do not fit, either." if count > 1 else ""
    return TrainingFailedError(
        first.code,
        f"Line {first.line} of {file.filename} does not fit this base model: {first.message}."
        f"{others}",
        param=file.param,
        problems=problems,
    )
