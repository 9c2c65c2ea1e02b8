"""One run of `benchmarks/recipes.py`: train on a task, then ask the tuned model what was held out.

The answers come from transformers and peft alone, as a user would get them.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    MACHINE_CACHE_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    ComputeSettings,
    DatasetRef,
    JobSpec,
)
from app.core.job.child.training_events import Failed, Finished, Stepped, TrainingEvent
from app.core.job.training_config import TrainingConfig
from app.core.manifest import sha256_of
from benchmarks.docstrings import write_rows
from benchmarks.recipe_tasks import RecipeTask
from benchmarks.trainers.child import ChildFailedError
from worker.training.recipe import run_job

_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    valid_losses: dict[str, float]
    """Validation loss by step, in nats per learned token. That of step 0 is the base model's."""
    right: int
    """Number of held-out rows that the tuned model answers right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs tasks on one base model."""

    model: Path
    threads: int
    scratch: Path

    def run(self, task: RecipeTask, config: TrainingConfig) -> Outcome:
        events: list[TrainingEvent] = []
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            directory = Path(name)
            self._write_job(directory, task, config)
            run_job(directory, events.append)
            last = events[-1]
            if not isinstance(last, Finished):
                raise ChildFailedError(last.message if isinstance(last, Failed) else str(last))
            questions = [row["messages"][:-1] for row in task.held_out]
            answers = self._ask(directory / OUTPUT_NAME / f"step-{last.step}", questions)
        steps = [event.metrics for event in events if isinstance(event, Stepped)]
        expected = [row["messages"][-1]["content"] for row in task.held_out]
        return Outcome(
            {str(one.step): one.valid_loss for one in steps if one.valid_loss is not None},
            right=sum(map(task.is_right, answers, expected)),
        )

    def _write_job(self, directory: Path, task: RecipeTask, config: TrainingConfig) -> None:
        cache = self.scratch / MACHINE_CACHE_NAME  # of all runs
        cache.mkdir(exist_ok=True)
        (directory / MACHINE_CACHE_NAME).symlink_to(cache)
        (directory / BASE_MODEL_NAME).symlink_to(self.model)
        name = self.model.name
        spec = JobSpec(
            job_id="ftjob-1",
            attempt=1,
            fine_tuned_model="ft:benchmark",
            base_model=BaseModelRef(
                id=name, repo=name, revision=None, licence="none", sha256="0" * 64
            ),
            training_file=_write_dataset(directory / TRAINING_DATA_NAME, task.training),
            validation_file=_write_dataset(directory / VALIDATION_DATA_NAME, task.held_out),
            config=config,
            threads=self.threads,
            compute=ComputeSettings(dtype="float32"),  # on every machine
        )
        (directory / JOB_SPEC_NAME).write_text(spec.model_dump_json())

    def _ask(self, adapter: Path, questions: Sequence[list[dict[str, str]]]) -> list[str]:
        """Answer each of the conversations greedily, all of them in one batch."""
        tokenizer: Any = AutoTokenizer.from_pretrained(adapter, padding_side="left")
        base: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        tuned: Any = PeftModel.from_pretrained(base, adapter).eval()
        inputs = tokenizer.apply_chat_template(
            list(questions),
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = tuned.generate(**inputs, do_sample=False, max_new_tokens=_MAX_NEW_TOKENS)
        length = inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)


def _write_dataset(path: Path, rows: Sequence[dict[str, Any]]) -> DatasetRef:
    write_rows(path, list(rows))
    return DatasetRef(
        file_id=f"file-{path.stem}",
        filename=path.name,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        examples=len(rows),
    )
