"""Trains one job, from its directory to a verified adapter."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers.utils import logging as transformers_logging

from app.core.clock import steady_s
from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    LOSS_LOG_NAME,
    MACHINE_CACHE_NAME,
    OUTPUT_NAME,
    PARENT_NAME,
    RESUME_NAME,
    JobSpec,
)
from app.core.job.child.training_events import (
    Finished,
    Noted,
    Planned,
    Started,
    Stopped,
    Unresumable,
)
from app.core.machine.memory import Memory, measure_memory
from worker.training.artifacts.loss_log import LossLog
from worker.training.artifacts.saved_state import (
    StateSaver,
    UnresumableError,
    compute_settings,
    load_state,
)
from worker.training.compute.compiled_layers import are_in_cache, remember_compiled
from worker.training.compute.hardware import measure_gpu_memory, read_or_measure
from worker.training.compute.plan import (
    ComputePlan,
    Placement,
    Workload,
    choose_placement,
    make_plan,
)
from worker.training.data.dataset import TokenizedData
from worker.training.data.encoding import end_of_text
from worker.training.failures import last_event_after
from worker.training.first_passes import keep_outputs, score_references
from worker.training.model.base_model import (
    ModelLoader,
    ModelShape,
    attach_adapter,
    explain_adapter,
)
from worker.training.model.forward import Forward, has_fused_layers
from worker.training.model.initialisation import freeze_start
from worker.training.model.randomness import make_deterministic, seed_torch
from worker.training.preparation.tokenized_job import prepare_data
from worker.training.step.step import BestAdapter
from worker.training.step.trainer import StepSchedule, Trainer
from worker.training.training_loop import Report, TrainingLoop

_LOOK_S = 0.5
"""Interval at which a job that waits for memory measures it, in seconds."""


def run_job(
    directory: Path,
    report: Report,
    is_stop_requested: Callable[[], bool] = lambda: False,
    *,
    loader: ModelLoader | None = None,
    measure_memory: Callable[[], Memory] = measure_memory,
) -> None:
    """Train the job in `directory`.

    The last event is `Finished`, `Failed`, `Stopped`, `OutOfSpace`, `MemoryShort` or `Unresumable`.
    Output of an earlier run in the same directory is removed first.

    Args:
        directory: a job directory, as `app.core.job.child.job_spec` describes it.
        report: takes every event as it happens.
        is_stop_requested: called before each step; training stops once it returns true.
        loader: loads the base model; None to load it from the disk.
        measure_memory: measures the memory of the machine.

    Raises:
        RuntimeError: the loss log of a resumed job does not end at its `resume_step`.
    """
    spec = JobSpec.model_validate_json((directory / JOB_SPEC_NAME).read_bytes())
    make_deterministic(spec.config.seed, threads=spec.threads)
    transformers_logging.disable_progress_bar()
    try:
        job = _Preparation(directory, spec, report, loader or ModelLoader(), measure_memory)
        report(_train(job, is_stop_requested))
    except UnresumableError as error:
        report(Unresumable(step=spec.resume_step or 0, message=str(error)))
    except Exception as error:
        if (last := last_event_after(error, spec.config)) is None:
            raise
        report(last)


@dataclass(frozen=True, slots=True)
class _Preparation:
    """A job and what is needed to prepare it."""

    directory: Path
    spec: JobSpec
    report: Report
    loader: ModelLoader
    measure_memory: Callable[[], Memory]

    @property
    def base_model(self) -> Path:
        return self.directory / BASE_MODEL_NAME


def _train(job: _Preparation, is_stop_requested: Callable[[], bool]) -> Finished | Stopped:
    shutil.rmtree(job.directory / OUTPUT_NAME, ignore_errors=True)
    loop = _prepare(job)
    job.report(Started(total_steps=loop.schedule.total_steps, compute=loop.spec.compute))
    loop.take_steps(is_stop_requested)
    if not loop.is_over:
        return Stopped(step=loop.trainer.progress.step)
    if loop.spec.compute.compile and loop.spec.compute.dtype is not None:
        remember_compiled(job.spec, ModelShape.read(job.base_model), loop.spec.compute.dtype)
    result = loop.settle()
    loop.check(result)
    return Finished(step=result, trained_tokens=loop.trainer.progress.tokens_seen)


def _prepare(job: _Preparation) -> TrainingLoop:
    """Load everything the job needs. This finds every error in its data."""
    directory, config = job.directory, job.spec.config
    tokenizer = job.loader.load_tokenizer(job.base_model)
    data = prepare_data(directory, job.spec, tokenizer, job.report)
    training, validation = data.training, data.validation
    schedule = StepSchedule(
        config,
        examples=len(training) // config.rows_per_example,
        has_validation=validation is not None,
    )
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
    keep_outputs(
        trainer,
        forward,
        plan,
        schedule,
        data.datasets,
        directory=directory,
        spare_bytes=spec.spare_disk_bytes,
        report=job.report,
    )
    if spec.resume_step is None and config.has_reference:
        score_references(trainer, data.datasets, job.report)
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
    base_model = ModelShape.read(job.base_model)
    work = Workload.of_job(
        base_model,
        config,
        data.lengths,
        total_steps=schedule.total_steps,
        threads=spec.threads,
    )
    is_in_cache = are_in_cache(spec, base_model, placement.dtype)
    make = partial(make_plan, asked, placement, speeds, work, is_in_cache=is_in_cache)
    memory = _await_memory(job, placement, lambda memory: make(memory=memory).peak_bytes)
    plan = make(memory=memory)
    plan.check_memory(memory)
    base = job.loader.load_weights(job.base_model, placement.torch_dtype)
    seed_torch(config.seed, 0)  # the random half of the adapter
    # A saved state has the adapter as it has become.
    is_new = spec.parent is None or spec.resume_step is not None
    parent = None if is_new else job.directory / PARENT_NAME
    model = attach_adapter(base, config.lora, spec.base_model, parent).to(placement.device)
    if config.lora.starts_from_base:
        freeze_start(model)
    for note in explain_adapter(model, config.lora):
        report(note)
    if plan.forward == "fast" and not has_fused_layers(model.get_base_model()):
        plan = make(memory=memory, has_fused_layers=False)
        plan.check_memory(memory)
    report(Noted(message=plan.explanation, level="warn" if plan.is_warning else "info"))
    return plan, plan.build_forward(model)


def _await_memory(job: _Preparation, placement: Placement, need: Callable[[Memory], int]) -> Memory:
    """Measure the memory of the device. On the processor, wait for a while until enough is free.

    Args:
        job: the job.
        placement: where it is computed.
        need: returns the bytes that it needs, given the memory.
    """
    if placement.device == "cuda":
        return measure_gpu_memory()
    over_s = steady_s() + job.spec.memory_wait_s
    loaded_bytes = job.loader.bytes_in_memory(job.base_model, placement.torch_dtype)
    while True:
        memory = job.measure_memory()
        memory = replace(memory, free=memory.free + loaded_bytes).limited_to(job.spec.memory_bytes)
        if not memory.free < need(memory) <= memory.total or steady_s() >= over_s:
            return memory
        time.sleep(_LOOK_S)
