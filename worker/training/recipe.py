"""What happens to a job, from its directory to a verified adapter."""

import shutil
from collections.abc import Callable
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
    TrainingConfig,
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
from worker.training.artifacts.loss_log_file import LossLogFile
from worker.training.artifacts.saved_state import (
    StateSaver,
    UnresumableError,
    asked_compute,
    load_state,
)
from worker.training.compute.choices import (
    DTYPES,
    Work,
    build_forward,
    choose,
    choose_device,
    choose_dtype,
)
from worker.training.compute.cpu_speed import read_or_measure
from worker.training.compute.free_memory import free_gpu_memory, free_memory
from worker.training.compute.memory import Footprint, fit
from worker.training.data.dataset import TokenizedData, tokenize_file
from worker.training.data.encoding import Encoder, end_of_text
from worker.training.data.report import DataFile
from worker.training.failures import TrainingFailedError, is_out_of_memory, is_out_of_space
from worker.training.job import Job, Report
from worker.training.model.base_model import (
    FROM_DISK,
    Loaders,
    attach_adapter,
    describe_parameters,
)
from worker.training.model.forward import Forward
from worker.training.randomness import make_deterministic, seed_torch
from worker.training.step.evaluate import BestAdapter
from worker.training.step.step_plan import Plan, plan_steps
from worker.training.step.trainer import Trainer

_TOKENS_NAME = "tokens"


def never() -> bool:
    """A job that nobody stops."""
    return False


def run_job(
    directory: Path,
    report: Report,
    is_stop_requested: Callable[[], bool] = never,
    *,
    loaders: Loaders = FROM_DISK,
) -> None:
    """Train the job in `directory`.

    The last thing reported is `Finished`, `Failed`, `Stopped`, `OutOfSpace` or `Unresumable`.
    Whatever an earlier run of the same directory has left in its output is removed.

    Args:
        directory: as `app.core.job.training_config` describes it.
        report: takes every event as it happens.
        is_stop_requested: asked before each step; once it is true, no further step is taken.
        loaders: where the base model comes from.

    Raises:
        RuntimeError: the loss log to go on with is not what the job says it is.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    make_deterministic(spec.config.seed, threads=spec.threads)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        report(_train(directory, spec, report, is_stop_requested, loaders))
    except TrainingFailedError as failure:
        report(failure.as_event())
    except UnresumableError as error:
        report(Unresumable(step=spec.resume_step or 0, message=str(error)[:10_000]))
    except Exception as error:
        if is_out_of_space(error):
            report(OutOfSpace(message=f"There is no space left to train in: {_reason(error)}."))
        elif is_out_of_memory(error):
            report(_out_of_memory(spec))
        else:
            raise


def _train(
    directory: Path,
    spec: JobSpec,
    report: Report,
    is_stop_requested: Callable[[], bool],
    loaders: Loaders,
) -> Finished | Stopped:
    shutil.rmtree(directory / OUTPUT_NAME, ignore_errors=True)
    job = _prepare(directory, spec, report, loaders)
    report(Started(total_steps=job.plan.total_steps))
    job.take_steps(is_stop_requested)
    if not job.is_over:
        return Stopped(step=job.trainer.progress.step)
    result = job.settle()
    job.check(result)
    return Finished(step=result, trained_tokens=job.trainer.progress.tokens_seen)


def _prepare(directory: Path, spec: JobSpec, report: Report, loaders: Loaders) -> Job:
    """Load everything a job needs; what may be wrong with its data comes out here."""
    config, base_model = spec.config, directory / BASE_MODEL_NAME
    tokenizer = loaders.load_tokenizer(base_model)
    training, validation = _tokenize(directory, spec, tokenizer, report)
    plan = plan_steps(config, examples=len(training), has_validation=validation is not None)
    report(Planned(total_steps=plan.total_steps))
    patience = config.early_stopping_patience
    best = BestAdapter(patience=patience) if validation and patience else None
    loaded = _load_model(directory, spec, loaders, report, _work(training, plan, config))
    spec, forward = loaded
    assert spec.compute.micro_batch_tokens is not None  # noqa: S101 - for the type
    trainer = Trainer(
        forward,
        training,
        config,
        plan=plan,
        pad_token_id=end_of_text(tokenizer),
        micro_batch_tokens=spec.compute.micro_batch_tokens,
    )
    if spec.resume_step is not None:
        load_state(directory / RESUME_NAME, spec, trainer=trainer, best=best)
    return Job(
        directory=directory,
        spec=spec,
        report=report,
        training=training,
        validation=validation,
        plan=plan,
        trainer=trainer,
        log=LossLogFile(directory / LOSS_LOG_NAME, length=spec.resume_step or 0),
        best=best,
        saver=StateSaver(directory / OUTPUT_NAME, spec, trainer=trainer, best=best),
    )


def _load_model(
    directory: Path, spec: JobSpec, loaders: Loaders, report: Report, work: Work
) -> tuple[JobSpec, Forward]:
    """The model with its adapter, and the job with all that was left open of how to compute it."""
    config = spec.config
    asked = asked_compute(directory, spec)
    speeds = read_or_measure(directory / MACHINE_CACHE_NAME)
    device = choose_device(asked)
    dtype = choose_dtype(asked, device, speeds)
    base_model = directory / BASE_MODEL_NAME
    footprint = Footprint.of(base_model, config, asked, dtype, longest_row=work.longest_row)
    if device == "cuda":
        room = free_gpu_memory()
    else:
        room = free_memory() + loaders.bytes_in_memory(base_model, DTYPES[dtype])
    asked = fit(asked, footprint, batch_size=config.batch_size, room=room)
    base = loaders.load_base_model(base_model, DTYPES[dtype])
    seed_torch(config.seed, 0)  # the random half of the adapter
    model = attach_adapter(base, config.lora, spec.base_model).to(device)
    report(Noted(message=describe_parameters(model)))
    choice = choose(asked, speeds, model, work, dtype=dtype)
    report(Noted(message=choice.explanation, level="warn" if choice.is_warning else "info"))
    spec = spec.model_copy(update={"compute": choice.settings})
    return spec, build_forward(choice.settings, model)


def _work(data: TokenizedData, plan: Plan, config: TrainingConfig) -> Work:
    examples = plan.total_steps * config.batch_size
    return Work(tokens=int(data.lengths.mean() * examples), longest_row=int(data.lengths.max()))


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


def _reason(error: Exception) -> str:
    """What the system says, without the path that is none of a user's business."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _out_of_memory(spec: JobSpec) -> Failed:
    return Failed(
        code="out_of_memory",
        message="The job does not fit in the memory of this machine. Lower context_length, which "
        f"is {spec.config.max_sequence_tokens:,}, or choose a smaller base model or lora_rank.",
    )
