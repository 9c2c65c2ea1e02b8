"""What happens to a job, from its directory to a verified adapter."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from datasets import disable_progress_bars
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.core.loss_log import StepMetrics
from app.core.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    DatasetRef,
    JobSpec,
)
from app.core.training_events import (
    Checkpointed,
    Failed,
    Finished,
    Noted,
    Started,
    Stepped,
    TrainingEvent,
)
from worker.training.artifacts import write_artifacts
from worker.training.checkpoint import save_checkpoint
from worker.training.data import TokenizedData, tokenize_file
from worker.training.data_report import DataFile
from worker.training.encoding import Encoder, end_of_text
from worker.training.evaluate import BestAdapter
from worker.training.failures import TrainingFailedError, is_out_of_memory
from worker.training.loss_log_file import LossLogFile
from worker.training.model import (
    attach_adapter,
    describe_parameters,
    load_base_model,
    load_tokenizer,
)
from worker.training.plan import Plan, plan_steps
from worker.training.randomness import make_deterministic, seed_step
from worker.training.trainer import Trainer
from worker.training.verification import check_adapter

Report = Callable[[TrainingEvent], None]

_LOSS_LOG_NAME = "loss-log.jsonl"
_TOKENS_NAME = "tokens"


def run_job(directory: Path, report: Report) -> None:
    """Train the job in `directory`. The last thing reported is `Finished` or `Failed`.

    Whatever an earlier run of the same directory has left in its output is removed.

    Args:
        directory: as `app.core.training_config` describes it.
        report: takes every event as it happens.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    make_deterministic(spec.config.seed, threads=spec.threads)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        report(_train(directory, spec, report))
    except TrainingFailedError as failure:
        report(failure.as_event())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        report(_out_of_memory(spec))


def _train(directory: Path, spec: JobSpec, report: Report) -> Finished:
    shutil.rmtree(directory / OUTPUT_NAME, ignore_errors=True)
    job = _prepare(directory, spec, report)
    report(Started(total_steps=job.plan.total_steps))
    last_step = job.take_steps()
    result = job.settle_on(last_step)
    job.check(result)
    return Finished(step=result, trained_tokens=job.trainer.tokens_seen)


def _prepare(directory: Path, spec: JobSpec, report: Report) -> "_Job":
    """Load everything a job needs; what may be wrong with its data comes out here."""
    config, base_model = spec.config, directory / BASE_MODEL_NAME
    tokenizer = load_tokenizer(base_model)
    training, validation = _tokenize(directory, spec, tokenizer, report)
    seed_step(config.seed, 0)  # the random half of the adapter
    model = attach_adapter(load_base_model(base_model), config.lora, spec.base_model)
    report(Noted(message=describe_parameters(model)))

    plan = plan_steps(config, examples=len(training), has_validation=validation is not None)
    patience = config.early_stopping_patience
    return _Job(
        directory=directory,
        spec=spec,
        report=report,
        training=training,
        validation=validation,
        model=model,
        plan=plan,
        trainer=Trainer(model, training, config, plan=plan, pad_token_id=end_of_text(tokenizer)),
        log=LossLogFile(directory / _LOSS_LOG_NAME),
        best=BestAdapter(patience=patience) if validation and patience else None,
    )


def _tokenize(
    directory: Path, spec: JobSpec, tokenizer: PreTrainedTokenizerBase, report: Report
) -> tuple[TokenizedData, TokenizedData | None]:
    config = spec.config
    encoder = Encoder(tokenizer, train_on_inputs=config.train_on_inputs)

    def tokenize(name: str, file: DatasetRef, param: str) -> TokenizedData:
        data = tokenize_file(
            DataFile(directory / name, file.filename, param),
            directory / _TOKENS_NAME / f"{param}.arrow",
            encoder,
            max_tokens=config.max_sequence_tokens,
            overlong=config.overlong_row_behavior,
        )
        for note in data.report.notes():
            report(note)
        return data

    training = tokenize(TRAINING_DATA_NAME, spec.training_file, "training_file")
    if spec.validation_file is None:
        return training, None
    return training, tokenize(VALIDATION_DATA_NAME, spec.validation_file, "validation_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One job under way."""

    directory: Path
    spec: JobSpec
    report: Report
    training: TokenizedData
    validation: TokenizedData | None
    model: PeftModel
    plan: Plan
    trainer: Trainer
    log: LossLogFile
    best: BestAdapter | None
    """None unless the job may stop early."""

    def take_steps(self) -> int:
        """Train to the end, or to an early stop. Returns the last step taken."""
        total = self.plan.total_steps
        for step in range(1, total + 1):
            metrics = self.trainer.take_step(step)
            if self.plan.is_evaluation(step):
                metrics = self._evaluate(metrics)
            self.log.append(metrics)
            self.report(Stepped(metrics=metrics))
            is_last = step == total or (self.best is not None and self.best.is_final)
            if is_last or self.plan.is_checkpoint(step):
                self._save(step)
            if is_last:
                return step
        raise AssertionError("A plan has at least one step.")

    def settle_on(self, last_step: int) -> int:
        """Put the best adapter into the model. Returns its step, of which there is a checkpoint."""
        if self.best is None or self.best.step == last_step:
            return last_step
        step = self.best.step
        self.best.restore(self.model)
        if not self.plan.is_checkpoint(step):
            self._save(step)
        result = f"The adapter of step {step:,}, with the lowest validation loss, is the result."
        if self.best.is_final:
            total = self.plan.total_steps
            stop = f"Stopped after step {last_step:,} of {total:,}: the loss no longer improved."
            result = f"{stop} {result}"
        self.report(Noted(message=result))
        return step

    def check(self, step: int) -> None:
        """Load the checkpoint of `step` as a user would. The model is not usable afterwards."""
        check_adapter(
            self.model,
            self._checkpoint(step),
            torch.from_numpy(self.training.read(0).input_ids).long(),
            learning_rate=self.spec.config.learning_rate,
        )

    def _evaluate(self, metrics: StepMetrics) -> StepMetrics:
        if self.validation is None:
            return metrics
        evaluation = self.trainer.evaluate(self.validation, metrics.step)
        if self.best is not None:
            self.best.observe(metrics.step, evaluation.loss, self.model)
        return metrics.model_copy(
            update={
                "valid_loss": evaluation.loss,
                "valid_mean_token_accuracy": evaluation.accuracy,
            }
        )

    def _save(self, step: int) -> None:
        save_checkpoint(
            self._checkpoint(step),
            step,
            self.spec,
            write_files=partial(
                write_artifacts,
                spec=self.spec,
                step=step,
                model=self.model,
                base_model=self.directory / BASE_MODEL_NAME,
                log=self.log,
            ),
        )
        name = self._checkpoint(step).relative_to(self.directory).as_posix()
        self.report(Checkpointed(step=step, directory=name))

    def _checkpoint(self, step: int) -> Path:
        return self.directory / OUTPUT_NAME / f"step-{step}"


def _out_of_memory(spec: JobSpec) -> Failed:
    return Failed(
        code="out_of_memory",
        message="The job does not fit in the memory of this machine. Lower context_length, which "
        f"is {spec.config.max_sequence_tokens:,}, or choose a smaller base model or lora_rank.",
    )
