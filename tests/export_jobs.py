"""Job directories in which a child makes an export."""

import shutil
from pathlib import Path

from peft import PeftModel

from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.artifacts import GENERATION_CONFIG_NAME, MODEL_CARD_NAME, TOKENIZER_NAMES
from app.core.job.child.job_spec import JobSpec, TaskName
from app.core.manifest import atomic_directory
from tests.tiny import chat_row, write_job
from worker.training.artifacts.checkpoint import write_adapter

STEP = 3
"""Step of the checkpoint."""


def write_adapter_checkpoint(
    directory: Path, spec: JobSpec, model: PeftModel, *, base_model: Path
) -> None:
    """Write a checkpoint with an adapter that works."""
    with atomic_directory(directory, STEP, spec) as adapter:
        write_adapter(adapter, model)
        for name in TOKENIZER_NAMES:
            if (base_model / name).exists():
                shutil.copyfile(base_model / name, adapter / name)
        (adapter / MODEL_CARD_NAME).write_text("# The adapter\n")
        (adapter / GENERATION_CONFIG_NAME).write_text('{"eos_token_id": [258]}\n')


def write_export_job(
    directory: Path, task: TaskName, model: PeftModel, *, base_model: Path
) -> JobSpec:
    """Fill a job directory for an export, as the worker does."""
    spec = write_job(directory, [chat_row("Hi", "Ho")], base_model=base_model, task=task)
    adapter = directory / ADAPTER_DIRECTORY_NAME
    write_adapter_checkpoint(adapter, spec, model, base_model=base_model)
    return spec
