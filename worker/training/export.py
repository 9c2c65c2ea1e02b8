"""Makes one export of an adapter: a merged model, or an adapter for llama.cpp. Verifies it."""

import shutil
from pathlib import Path

import torch

from app.core import manifest
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.child.job_spec import BASE_MODEL_NAME, JOB_SPEC_NAME, OUTPUT_NAME, JobSpec
from app.core.job.child.training_events import Exported, Progressed
from worker.training.failures import last_event_after
from worker.training.hand_off.gguf_adapter import export_gguf
from worker.training.hand_off.merged import export_merged
from worker.training.training_loop import Report


def export_adapter(directory: Path, report: Report) -> None:
    """Make the export that the job in `directory` asks for.

    The last event is `Exported`, `Failed`, `OutOfSpace` or `MemoryShort`. Output of an earlier run
    in the same directory is removed first.

    Args:
        directory: a job directory with the base model and the checkpoint of the adapter.
        report: takes every event as it happens.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    shutil.rmtree(directory / OUTPUT_NAME, ignore_errors=True)
    torch.set_num_threads(spec.threads)
    base_model, adapter = directory / BASE_MODEL_NAME, directory / ADAPTER_DIRECTORY_NAME
    make = export_gguf if spec.task == "export_gguf" else export_merged
    try:
        step = manifest.read(adapter).step
        with manifest.atomic_directory(directory / OUTPUT_NAME / "export", step, spec) as target:
            verification = make(
                target,
                spec,
                base_model=base_model,
                adapter=adapter,
                progress=lambda fraction: report(Progressed(fraction=fraction)),
            )
        report(Exported(verification=verification))
    except Exception as error:
        if (last := last_event_after(error, spec.config)) is None:
            raise
        report(last)
