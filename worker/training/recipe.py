"""Trains one job, from its directory to a verified adapter."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from datasets import disable_progress_bars
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.core.job.training_config import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    MACHINE_CACHE_NAME,
    OUTPUT_NAME,
    RESUME_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    DatasetRef,
    JobSpec,
)
from app.core.job.training_events import (
    Failed,
    Finished,
    Noted,
    OutOfSpace,
    Planned,
    Started,
    Stopped,
    Unresumable,
)
from worker.training.artifacts.loss_log import LossLog
from worker.training.artifacts.saved_state import (
    StateSaver,
    UnresumableError,
    compute_settings,
    load_state,
)
from worker.training.compute.hardware import free_gpu_memory, free_memory, read_or_measure
from worker.training.compute.plan import ComputePlan, Workload, choose_placement, make_plan
from worker.training.data.dataset import DataFile, TokenizedData, tokenize_file
from worker.training.data.encoding import Encoder, end_of_text
from worker.training.data.split import split_rows
from worker.training.data.stop_tokens import StopTokens
from worker.training.failures import TrainingFailedError, is_out_of_memory, is_out_of_space
from worker.training.model.base_model import (
    ModelLoader,
    ModelShape,
    attach_adapter,
    explain_adapter,
)
from worker.training.model.forward import Forward, has_fused_layers
from worker.training.model.initialisation import freeze_start
from worker.training.model.randomness import make_deterministic, seed_torch
from worker.training.step.step import BestAdapter
from worker.training.step.trainer import StepSchedule, Trainer
from worker.training.training_loop import Report, TrainingLoop

_TOKENS_NAME = "tokens"


def run_job(
    directory: Path,
    report: Report,
    is_stop_requested: Callable[[], bool] = lambda: False,
    *,
    loader: ModelLoader | None = None,
    measure_free_memory: Callable[[], int] = free_memory,
) -> None:
    """Train the job in `directory`.

    The last event is `Finished`, `Failed`, `Stopped`, `OutOfSpace` or `Unresumable`. Output of an
    earlier run in the same directory is removed first.

    Args:
        directory: a job directory, as `app.core.job.training_config` describes it.
        report: takes every event as it happens.
        is_stop_requested: called before each step; training stops once it returns true.
        loader: loads the base model; None to load it from the disk.
        measure_free_memory: returns the free memory of the machine, in bytes.

    Raises:
        RuntimeError: the loss log of a resumed job does not end at its `resume_step`.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    make_deterministic(spec.config.seed, threads=spec.threads)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        job = _Preparation(directory, spec, report, loader or ModelLoader(), measure_free_memory)
        report(_train(job, is_stop_requested))
    except TrainingFailedError as failure:
        report(failure.as_event())
    except UnresumableError as error:
        report(Unresumable(step=spec.resume_step or 0, message=str(error)))
    except Exception as error:
        if is_out_of_space(error):
            report(OutOfSpace(message=f"The disk is full: {_reason(error)}."))
        elif is_out_of_memory(error):
            report(_out_of_memory(spec))
        else:
            raise


@dataclass(frozen=True, slots=True)
class _Preparation:
    """A job and what is needed to prepare it."""

    directory: Path
    spec: JobSpec
    report: Report
    loader: ModelLoader
    measure_free_memory: Callable[[], int]

    @property
    def base_model(self) -> Path:
        return self.directory / BASE_MODEL_NAME


def _train(job: _Preparation, is_stop_requested: Callable[[], bool]) -> Finished | Stopped:
    shutil.rmtree(job.directory / OUTPUT_NAME, ignore_errors=True)
    loop = _prepare(job)
    job.report(Started(total_steps=loop.schedule.total_steps))
    loop.take_steps(is_stop_requested)
    if not loop.is_over:
        return Stopped(step=loop.trainer.progress.step)
    result = loop.settle()
    loop.check(result)
    return Finished(step=result, trained_tokens=loop.trainer.progress.tokens_seen)


def _prepare(job: _Preparation) -> TrainingLoop:
    """Load everything the job needs. This finds every error in its data."""
    directory, config = job.directory, job.spec.config
    tokenizer = job.loader.load_tokenizer(job.base_model)
    data = _tokenize(job, tokenizer)
    training, validation = data.training, data.validation
    schedule = StepSchedule(config, examples=len(training), has_validation=validation is not None)
    job.report(Planned(total_steps=schedule.total_steps))
    best = BestAdapter.for_job(config) if validation else None
    plan, forward = _load_model(job, training, schedule)
    spec = job.spec.model_copy(update={"compute": plan.settings})
    trainer = Trainer(
        forward,
        training,
        config,
        schedule=schedule,
        pad_token_id=end_of_text(tokenizer),
        micro_batch_tokens=plan.micro_batch_tokens,
    )
    if spec.resume_step is not None:
        load_state(
            directory / RESUME_NAME, spec, trainer=trainer, best=best, data_sha256=data.sha256
        )
    return TrainingLoop(
        directory=directory,
        spec=spec,
        report=job.report,
        training=training,
        validation=validation,
        stop_tokens=data.stop_tokens,
        schedule=schedule,
        trainer=trainer,
        log=LossLog(directory / LOSS_LOG_NAME, length=spec.resume_step or 0),
        best=best,
        saver=StateSaver(
            directory / OUTPUT_NAME, spec, trainer=trainer, best=best, data_sha256=data.sha256
        ),
    )


def _load_model(
    job: _Preparation, data: TokenizedData, schedule: StepSchedule
) -> tuple[ComputePlan, Forward]:
    """Plan how the job is computed, load its base model, and attach the adapter."""
    spec, config, report = job.spec, job.spec.config, job.report
    asked = compute_settings(job.directory, spec)
    speeds = read_or_measure(job.directory / MACHINE_CACHE_NAME)
    placement = choose_placement(asked, speeds)
    if placement.device == "cuda":
        free_bytes = free_gpu_memory()
    else:
        loaded_bytes = job.loader.bytes_in_memory(job.base_model, placement.torch_dtype)
        free_bytes = job.measure_free_memory() + loaded_bytes
    work = Workload(
        base_model=ModelShape.read(job.base_model),
        lora=config.lora,
        batch_size=config.batch_size,
        tokens=int(data.lengths.mean() * schedule.total_steps * config.batch_size),
        longest_row=int(data.lengths.max()),
    )
    make = partial(make_plan, asked, placement, speeds, work, free_bytes=free_bytes)
    plan = make()
    base = job.loader.load_weights(job.base_model, placement.torch_dtype)
    seed_torch(config.seed, 0)  # the random half of the adapter
    model = attach_adapter(base, config.lora, spec.base_model).to(placement.device)
    if config.lora.starts_from_base:
        freeze_start(model)
    for note in explain_adapter(model, config.lora):
        report(note)
    if plan.forward == "fast" and not has_fused_layers(model):
        plan = make(has_fused_layers=False)
    report(Noted(message=plan.explanation, level="warn" if plan.is_warning else "info"))
    return plan, plan.build_forward(model)


@dataclass(frozen=True, slots=True)
class _Data:
    training: TokenizedData
    validation: TokenizedData | None
    stop_tokens: StopTokens

    @property
    def sha256(self) -> str:
        """Digest of all tokens, and of which of them are learned."""
        parts = [data.sha256 for data in (self.training, self.validation) if data is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _tokenize(job: _Preparation, tokenizer: PreTrainedTokenizerBase) -> _Data:
    """Tokenize the training file, and the validation file if there is one.

    Without one, `validation_split` may take rows of the training file in its place.
    """
    directory, spec, config = job.directory, job.spec, job.spec.config
    stop_tokens = StopTokens.read(job.base_model, tokenizer)
    encoder = Encoder(
        tokenizer,
        train_on=config.learned_part,
        today=config.template_date or datetime.now(UTC).date(),
        stop_tokens=list(stop_tokens.base.values()) if stop_tokens.are_known else None,
    )

    def tokenize(name: str, file: DatasetRef, param: str) -> TokenizedData:
        data = tokenize_file(
            DataFile(directory / name, file.filename, param),
            directory / _TOKENS_NAME / f"{param}.arrow",
            encoder,
            max_sequence_tokens=config.max_sequence_tokens,
            overlong=config.overlong_row_behavior,
        )
        for note in data.report.notes():
            job.report(note)
        return data

    training = tokenize(TRAINING_DATA_NAME, spec.training_file, "training_file")
    stop_tokens = stop_tokens.teaching(encoder.ends, tokenizer)
    for warning in stop_tokens.warnings():
        job.report(warning)
    validation = None
    if spec.validation_file is not None:
        validation = tokenize(VALIDATION_DATA_NAME, spec.validation_file, "validation_file")
    elif config.validation_split is not None:
        examples, fraction = len(training), config.validation_split
        training, validation = split_rows(training, fraction=fraction, seed=config.seed)
        job.report(
            Noted(
                message=f"{spec.training_file.filename}: {len(validation):,} of {examples:,} "
                "examples are held out to evaluate on, as validation_split says."
            )
        )
    return _Data(training, validation, stop_tokens)


def _reason(error: Exception) -> str:
    """The message of the operating system, without the path, which is internal."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _out_of_memory(spec: JobSpec) -> Failed:
    return Failed(
        code="out_of_memory",
        message="The job does not fit in the memory of this machine. Lower context_length, which "
        f"is {spec.config.max_sequence_tokens:,}, or lora_r, which is {spec.config.lora.rank}, or "
        "choose a smaller base model.",
    )
