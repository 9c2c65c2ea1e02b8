"""What was found in the data of a job, in the form in which users see it."""

import numpy as np

from app.core.job.child.job_spec import JobSpec
from app.core.job.child.training_events import Noted
from app.core.job.data_report import DataWarning, FileReport, HeldOut
from worker.training.data.dataset import TokenizedData
from worker.training.preparation.findings import FileFindings
from worker.training.preparation.statistics import describe, histogram

_LINES_IN_NOTE = 10


def as_note(warning: DataWarning, spec: JobSpec) -> Noted:
    """A warning as a message, with the name of the file and the first lines."""
    files = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    file = warning.param and files[warning.param]
    message = f"{file.filename}: {warning.message}" if file else warning.message
    if warning.lines:
        named = warning.lines[:_LINES_IN_NOTE]
        more = ", ..." if warning.count > len(named) else ""
        message += f" Lines: {', '.join(map(str, named))}{more}."
    return Noted(level="warn", message=message)


def report_file(findings: FileFindings) -> FileReport:
    """The report on one file."""
    lengths = np.frombuffer(findings.lengths, np.int32)
    failure = findings.failure()
    return FileReport(
        file_id=findings.file.reference.file_id,
        filename=findings.file.filename,
        lines=findings.lines,
        examples=findings.examples,
        tokens=findings.tokens,
        learned_tokens=findings.learned_tokens,
        tokens_per_example=describe(lengths),
        learned_tokens_per_example=describe(np.frombuffer(findings.learned_lengths, np.int32)),
        lengths=histogram(lengths),
        longest=findings.longest.as_examples(),
        truncated=findings.truncated.count,
        dropped=findings.dropped.count,
        lost_learned_tokens=findings.lost_learned_tokens,
        lost_stop_tokens=findings.lost_ends.count,
        nothing_to_learn=findings.left_empty,
        duplicates=findings.duplicates.count,
        split_conversations=findings.split_chats,
        split_examples=findings.split_examples,
        refusal=str(failure) if failure is not None else None,
    )


def report_held_out(data: TokenizedData, *, rows_per_example: int) -> HeldOut:
    """The report on the part of the training file that is evaluated on."""
    return HeldOut(
        examples=len(data) // rows_per_example,
        tokens=int(data.lengths.sum()),
        learned_tokens=int(data.learned.sum()),
    )
