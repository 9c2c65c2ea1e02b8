"""Reports on tuned models, as tasks make them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.child.job_spec import JobSpec
from app.core.job.scores.report import (
    REQUEST_NAME,
    AnswerPair,
    AnswerReport,
    ModelAnswer,
    ReportRequest,
    Scores,
)
from tests.export_jobs import write_adapter_checkpoint
from tests.tiny import write_job

REPORT_MADE = AnswerReport(
    source="validation_file",
    examples=80,
    chosen_examples=50,
    skipped_examples=1,
    scored_examples=48,
    json_references=0,
    base=Scores(exact_match=0.0, token_f1=0.25, valid_json=None),
    tuned=Scores(exact_match=0.5, token_f1=0.75, valid_json=None),
    answers=(
        AnswerPair(
            prompt="Hi",
            reference="Ho",
            base=ModelAnswer(text="Hello there", finish_reason="length"),
            tuned=ModelAnswer(text="Ho", finish_reason="stop"),
        ),
    ),
    processor_s=12.5,
    is_over_time=True,
)


def write_report_job(
    directory: Path,
    model: PeftModel,
    rows: Sequence[dict[str, Any]],
    *,
    base_model: Path,
    prompts: Sequence[str] = (),
    are_chats: bool = True,
    **changes: Any,
) -> JobSpec:
    """Fill a job directory for a report, as the worker does.

    Args:
        directory: to be made.
        model: its adapter is that of the job.
        rows: of the training file.
        base_model: its directory.
        prompts: those of the request.
        are_chats: whether they are messages.
        changes: for `write_job`.
    """
    spec = write_job(directory, rows, base_model=base_model, task="report", **changes)
    adapter = directory / ADAPTER_DIRECTORY_NAME
    write_adapter_checkpoint(adapter, spec, model, base_model=base_model)
    request = ReportRequest(prompts=tuple(prompts), are_chats=are_chats)
    (directory / REQUEST_NAME).write_text(request.model_dump_json())
    return spec
