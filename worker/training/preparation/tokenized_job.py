"""Tokenizes the files of a job, and says what it found: as events and as a report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    TOKENS_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    DatasetRef,
    JobSpec,
)
from app.core.job.child.training_events import Noted
from app.core.job.data_report import (
    MAX_LONGEST,
    MAX_WARNINGS,
    DataReport,
    DataWarning,
    FileParam,
    HeldOut,
)
from app.core.job.estimate import Estimate
from worker.training.data.dataset import TokenizedData
from worker.training.data.encoding import Encoder
from worker.training.data.stop_tokens import StopTokens
from worker.training.preparation.findings import DataFile, FileFindings
from worker.training.preparation.prepared_data import (
    PreparedData,
    TokensIndex,
    describe_inputs,
    find_checked_tokens,
    open_data,
)
from worker.training.preparation.reporting import as_note, report_file, report_held_out
from worker.training.preparation.tokenizing import tokenize_file

OWN_TOKENS_NAME = "tokenized"
"""Directory, in that of the job, of the tokens that this attempt made itself."""


def prepare_data(
    directory: Path,
    spec: JobSpec,
    tokenizer: PreTrainedTokenizerBase,
    report: Callable[[Noted], None],
) -> PreparedData:
    """The data of a job as tokens: those of the check of the job's data, or else new ones.

    Args:
        directory: that of the job.
        spec: the job.
        tokenizer: that of its base model.
        report: takes what is found. The check has reported already.

    Raises:
        TrainingFailedError: the job cannot train on its data.
    """
    index = find_checked_tokens(directory / TOKENS_NAME, spec)
    if index is not None:
        stop_tokens = StopTokens.read(directory / BASE_MODEL_NAME, tokenizer)
        stop_tokens = stop_tokens.teaching(index.ends, tokenizer)
        return open_data(directory / TOKENS_NAME, index, spec, stop_tokens)
    return tokenize_job(directory, spec, tokenizer).open(report)


@dataclass(frozen=True)
class TokenizedJob:
    """The files of a job, tokenized."""

    spec: JobSpec
    directory: Path
    """Directory of the tokens."""
    index: TokensIndex
    training: FileFindings
    validation: FileFindings | None
    stop_tokens: StopTokens

    def open(self, report: Callable[[Noted], None]) -> PreparedData:
        """Report what was found, and open the tokens.

        Raises:
            TrainingFailedError: the job cannot train on its data.
        """
        for file in self._files():
            for note in file.notes():
                report(note)
        for warning in self._warnings:
            report(as_note(warning, self.spec))
        for file in self._files():
            if (failure := file.failure()) is not None:
                raise failure
        data = open_data(self.directory, self.index, self.spec, self.stop_tokens)
        if (held_out := data.held_out) is not None:
            report(
                Noted(
                    message=f"{self.spec.training_file.filename}: "
                    f"{self._report_held_out(held_out).examples:,} of "
                    f"{self.training.examples:,} examples are held out to evaluate on, as "
                    "validation_split says."
                )
            )
        return data

    def describe(
        self, data: PreparedData | None = None, estimate: Estimate | None = None
    ) -> DataReport:
        """The report on what was found.

        Args:
            data: the opened tokens. None if the job cannot train on them.
            estimate: what the training takes, if that is known.
        """
        held_out = data.held_out if data is not None else None
        training, *others = (report_file(file) for file in self._files())
        return DataReport(
            training_file=training,
            validation_file=others[0] if others else None,
            held_out=self._report_held_out(held_out) if held_out is not None else None,
            stop_tokens=tuple(self.stop_tokens.taught)[:MAX_LONGEST],
            warnings=tuple(self._warnings)[:MAX_WARNINGS],
            estimate=estimate,
        )

    def _report_held_out(self, data: TokenizedData) -> HeldOut:
        return report_held_out(data, rows_per_example=self.spec.config.rows_per_example)

    def _files(self) -> list[FileFindings]:
        return [self.training, *([self.validation] if self.validation is not None else [])]

    @cached_property
    def _warnings(self) -> list[DataWarning]:
        found = [warning for file in self._files() for warning in file.warnings()]
        found += self.stop_tokens.warnings()
        if self.validation is not None:
            found += self.training.digests.find_in(self.validation.digests).warn(
                "also_in_validation_file",
                "Lines that also stand in the validation file: {count}. The validation loss looks "
                "better than it is. Remove them from one of the two files.",
                "training_file",
            )
        return found


def tokenize_job(
    directory: Path, spec: JobSpec, tokenizer: PreTrainedTokenizerBase
) -> TokenizedJob:
    """Tokenize the files of the job in `directory`, whatever is wrong with them."""
    config = spec.config
    stop_tokens = StopTokens.read(directory / BASE_MODEL_NAME, tokenizer)
    encoder = Encoder.for_job(config, tokenizer, stop_tokens)
    target = directory / OWN_TOKENS_NAME
    digests: dict[FileParam, str] = {}

    def tokenize(name: str, file: DatasetRef, param: FileParam) -> FileFindings:
        findings, digests[param] = tokenize_file(
            DataFile(directory / name, file, param),
            target,
            encoder,
            max_sequence_tokens=config.max_sequence_tokens,
            overlong=config.overlong_row_behavior,
        )
        return findings

    training = tokenize(TRAINING_DATA_NAME, spec.training_file, "training_file")
    ends = tuple(sorted(encoder.ends))
    validation = spec.validation_file and tokenize(
        VALIDATION_DATA_NAME, spec.validation_file, "validation_file"
    )
    index = TokensIndex(inputs=describe_inputs(spec), ends=ends, sha256=digests)
    index.write(target)
    stop_tokens = stop_tokens.teaching(ends, tokenizer)
    return TokenizedJob(spec, target, index, training, validation, stop_tokens)
