"""The estimate of a job's memory, against what its layers really keep."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.core import manifest
from app.core.job.child.job_spec import ComputeSettings, DtypeName, ForwardName
from app.core.job.child.training_events import (
    Finished,
    MemoryShort,
    Noted,
    Started,
    Stepped,
    TrainingEvent,
)
from app.core.job.lora_shape import LoraShape
from app.core.machine.memory import Memory
from tests.numerics.test_cross_entropy import build_batch
from tests.tiny import (
    build_model,
    build_peft_model,
    build_tokenizer,
    change_job,
    chat_row,
    write_job,
    write_tiny_model,
)
from worker.training.compute.memory import Footprint, advise_less, plan_memory
from worker.training.model.base_model import ModelShape
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.randomness import DropoutKey
from worker.training.recipe import run_job

ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]
ATTENTION = ("q_proj", "v_proj")
EVERY_LINEAR = (*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMOL = ModelShape(
    architecture="llama",
    parameters=134_515_008,
    layers=30,
    width=576,
    mlp_width=1536,
    heads=9,
    head_width=64,
    kv_heads=3,
    vocabulary=49_152,
)


def kept_bytes(forward: Forward, rows: int, tokens: int) -> int:
    """What the forward pass keeps for the backward pass."""
    storages: dict[int, tuple[int, Tensor]] = {}
    parameters = {one.untyped_storage().data_ptr() for one in forward.model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    batch = build_batch((tokens,) * rows, (tokens - 2,) * rows)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward.log_probs(batch, DropoutKey(1, 1))
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("targets", [ATTENTION, EVERY_LINEAR], ids=["attention", "every linear"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [FusedForward, ReferenceForward])
@pytest.mark.parametrize("widths", [(64, 128), (64, 512), (128, 256)], ids=str)
def test_the_estimate_is_a_little_above_what_is_kept(
    build: Callable[..., Forward],
    dtype: DtypeName,
    targets: tuple[str, ...],
    widths: tuple[int, int],
    tmp_path: Path,
) -> None:
    width, mlp_width = widths
    shape = {"hidden_size": width, "intermediate_size": mlp_width, "head_dim": width // 4}
    model = build_peft_model(target_modules=targets, dropout=0.05, **shape)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))
    build_model(**shape).save_pretrained(tmp_path)
    rows, tokens = 4, 128
    footprint = Footprint(
        ModelShape.read(tmp_path),
        LoraShape(rank=4, dropout=0.05, target_modules=targets),
        dtype,
        "plain" if build is ReferenceForward else "fast",
        longest_row=tokens,
    )

    estimated = footprint.activations(rows * tokens, checkpointing=False)
    estimated -= footprint.activations(0, checkpointing=False)

    layers = 2
    by_layers = estimated * layers / (layers + 3)  # less what the backward pass works in
    assert 0.9 <= by_layers / kept_bytes(build(model), rows, tokens) <= 1.7


def test_parameters_are_counted_without_loading_them(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)

    expected = sum(one.numel() for one in build_model().parameters())
    assert ModelShape.read(tmp_path).parameters == expected


FOOTPRINT = Footprint(SMOL, LoraShape(), "bfloat16", "fast", longest_row=512)


def plan_within(
    total_bytes: float, asked: ComputeSettings | None = None, *, used_bytes: float = 0
) -> tuple[int | None, bool | None]:
    memory = Memory(total=int(total_bytes), free=int(total_bytes - used_bytes))
    return plan_memory(asked or ComputeSettings(), FOOTPRINT, batch_size=4, memory=memory)


def test_short_memory_brings_gradient_checkpointing_and_then_smaller_micro_batches() -> None:
    planned = [plan_within(total_bytes) for total_bytes in (8e9, 1.9e9, 1.2e9, 0)]

    assert planned == [(1024, False), (1024, True), (512, True), (512, True)]


@pytest.mark.parametrize("total_bytes", [8e9, 1.9e9, 1.2e9])
def test_memory_that_others_use_changes_no_micro_batch(total_bytes: float) -> None:
    idle = plan_within(total_bytes)

    busy = plan_within(total_bytes, used_bytes=total_bytes)

    assert busy == (idle[0], True)


def test_a_choice_of_the_settings_is_kept() -> None:
    assert plan_within(8e9, ComputeSettings(micro_batch_tokens=2048)) == (2048, False)
    assert plan_within(8e9, ComputeSettings(gradient_checkpointing=True)) == (1024, True)
    assert plan_within(1.3e9, ComputeSettings(micro_batch_tokens=2048)) == (2048, True)
    asked = ComputeSettings(gradient_checkpointing=False, micro_batch_tokens=2048)
    assert plan_within(2e9, asked) == (2048, False)


PLENTY = 100_000_000_000


def run(
    directory: Path,
    base_model: Path,
    *,
    free_bytes: int = PLENTY,
    total_bytes: int = PLENTY,
    memory_bytes: int | None = None,
) -> list[TrainingEvent]:
    write_job(directory, ROWS, base_model=base_model, memory_bytes=memory_bytes)
    events: list[TrainingEvent] = []
    memory = Memory(total=total_bytes, free=free_bytes)
    run_job(directory, events.append, measure_memory=lambda: memory)
    torch.use_deterministic_algorithms(mode=False)
    return events


def test_a_job_too_large_is_told_before_it_starts(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")

    *before, short = run(
        tmp_path / "job", tmp_path / "model", free_bytes=400_000_000, total_bytes=500_000_000
    )

    assert isinstance(short, MemoryShort)
    assert "0.4 GB of 0.5 GB are free" in short.message
    assert "Lower context_length or lora_r, " in short.message
    assert short.needed_bytes > short.total_bytes == 500_000_000
    assert not [event for event in before if isinstance(event, Started | Stepped)]


LONGEST_ROW = 47
"""Tokens of the longest of `ROWS`."""


def peak(base_model: Path, forward: ForwardName, *, checkpointing: bool) -> int:
    """What a job on `ROWS` takes with micro-batches of whole steps, by the estimate."""
    shape = ModelShape.read(base_model)
    footprint = Footprint(shape, LoraShape(rank=4), "float32", forward, LONGEST_ROW)
    return footprint.peak(4 * LONGEST_ROW, checkpointing=checkpointing)


def explanation(events: list[TrainingEvent]) -> str:
    return [event.message for event in events if isinstance(event, Noted)][-1]


def test_a_job_that_takes_less_memory_ends_in_the_same_bits(tmp_path: Path) -> None:
    base_model = tmp_path / "model"
    write_tiny_model(base_model)
    usual = run(tmp_path / "usual", base_model)

    short = run(
        tmp_path / "short", base_model, free_bytes=peak(base_model, "fast", checkpointing=True)
    )

    assert "checkpointing" not in explanation(usual)
    assert explanation(short).endswith(", with gradient checkpointing to save memory.")
    assert read_adapter(tmp_path / "short") == read_adapter(tmp_path / "usual")


def read_adapter(job: Path) -> bytes:
    return (job / "out/step-9/adapter_model.safetensors").read_bytes()


def planned_tokens(job: Path) -> int:
    return manifest.read(job / "out/step-9").provenance["compute"]["micro_batch_tokens"]


def test_a_job_ends_in_the_same_bits_beside_a_sampler_that_holds_its_memory(
    tmp_path: Path,
) -> None:
    """It is so large that its micro-batches are smaller than those of a machine without sampler."""
    base_model = tmp_path / "model"
    write_tiny_model(base_model)
    needed = peak(base_model, "fast", checkpointing=True)
    run(tmp_path / "alone", base_model)

    run(tmp_path / "idle", base_model, memory_bytes=needed)
    run(tmp_path / "busy", base_model, free_bytes=needed, memory_bytes=needed)

    assert planned_tokens(tmp_path / "alone") > planned_tokens(tmp_path / "idle")
    assert planned_tokens(tmp_path / "idle") == planned_tokens(tmp_path / "busy")
    assert read_adapter(tmp_path / "idle") == read_adapter(tmp_path / "busy")


def test_a_job_waits_rather_than_end_in_other_bits(tmp_path: Path) -> None:
    base_model = tmp_path / "model"
    write_tiny_model(base_model)
    needed = peak(base_model, "fast", checkpointing=True)

    *_, short = run(tmp_path / "job", base_model, free_bytes=needed - 1)

    assert isinstance(short, MemoryShort)
    assert short.needed_bytes == needed


def test_a_job_waits_a_while_for_memory_that_is_given_back(tmp_path: Path) -> None:
    base_model, job = tmp_path / "model", tmp_path / "job"
    write_tiny_model(base_model)
    needed = peak(base_model, "fast", checkpointing=True)
    write_job(job, ROWS, base_model=base_model)
    change_job(job, memory_wait_s=60.0)
    measured = iter([needed - 1, needed])
    events: list[TrainingEvent] = []

    run_job(job, events.append, measure_memory=lambda: Memory(PLENTY, free=next(measured)))
    torch.use_deterministic_algorithms(mode=False)

    assert isinstance(events[-1], Finished)


def test_a_job_does_not_wait_for_memory_that_there_is_not(tmp_path: Path) -> None:
    base_model, job = tmp_path / "model", tmp_path / "job"
    write_tiny_model(base_model)
    write_job(job, ROWS, base_model=base_model)
    change_job(job, memory_wait_s=3600.0)
    events: list[TrainingEvent] = []

    run_job(job, events.append, measure_memory=lambda: Memory(total=10**8, free=10**8))
    torch.use_deterministic_algorithms(mode=False)

    assert isinstance(events[-1], MemoryShort)


def test_the_memory_of_the_layers_that_train_is_estimated(tmp_path: Path) -> None:
    """Rows longer than a Mistral's window need the reference layers, which take less here."""
    base_model = tmp_path / "model"
    build_model("mistral", sliding_window=16).save_pretrained(base_model)
    build_tokenizer().save_pretrained(base_model)
    just_enough = peak(base_model, "plain", checkpointing=False)

    events = run(tmp_path / "job", base_model, free_bytes=just_enough)

    assert just_enough < peak(base_model, "fast", checkpointing=False)
    assert "longer than its attention window of 16 tokens" in explanation(events)
    assert "checkpointing" not in explanation(events)


def test_the_trained_part_is_adapter_gradient_and_moments() -> None:
    one_layer = 64 * (576 + 576) + 64 * (576 + 192)
    assert FOOTPRINT.trained == 30 * one_layer * 16
    assert FOOTPRINT.base_model == 269_030_016


@pytest.mark.parametrize(("is_tied", "matrices"), [(True, 1), (False, 2)])
def test_trained_embeddings_are_counted_once_if_they_are_one_matrix(
    matrices: int, *, is_tied: bool
) -> None:
    model = dataclasses.replace(SMOL, has_tied_embeddings=is_tied)
    shape = LoraShape(modules_to_save=("embed_tokens", "lm_head"))
    footprint = dataclasses.replace(FOOTPRINT, model=model, lora=shape)

    assert footprint.trained == FOOTPRINT.trained + matrices * 49_152 * 576 * 32
    assert "lora_r, leave out modules_to_save, choose" in advise_less(shape)
