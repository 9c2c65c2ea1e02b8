"""What a job takes of the memory, against what its layers really keep."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.core.job.training_config import ComputeSettings, DtypeName, LoraShape
from app.core.job.training_events import Failed, Noted, Started, Stepped, TrainingEvent
from tests.numerics.test_losses import build_batch
from tests.tiny import build_model, build_peft_model, chat_row, write_job, write_tiny_model
from worker.training import recipe
from worker.training.compute.memory import Footprint, Model, fit
from worker.training.failures import TrainingFailedError
from worker.training.model.dropout import DropoutKey
from worker.training.model.forward import Forward, ReferenceForward
from worker.training.model.fused_forward import FusedForward
from worker.training.recipe import run_job

ROWS = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(10)]
ATTENTION = ("q_proj", "v_proj")
EVERY_LINEAR = (*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMOL = Model(
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
        forward.score(batch, DropoutKey(1, 1))
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
        Model.read(tmp_path),
        LoraShape(rank=4, dropout=0.05, target_modules=targets),
        dtype,
        is_plain=build is ReferenceForward,
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
    assert Model.read(tmp_path).parameters == expected


def footprint_of(model: Model = SMOL, *, longest_row: int = 512) -> Footprint:
    return Footprint(model, LoraShape(), "bfloat16", is_plain=False, longest_row=longest_row)


def fit_into(room: float, asked: ComputeSettings | None = None) -> tuple[int | None, bool | None]:
    chosen = fit(asked or ComputeSettings(), footprint_of(), batch_size=4, room=int(room))
    return chosen.micro_batch_tokens, chosen.gradient_checkpointing


def test_where_memory_is_short_layers_are_computed_twice_and_then_fewer_tokens_read_at_once() -> (
    None
):
    chosen = [fit_into(room) for room in (8e9, 1.9e9, 1.16e9)]

    assert chosen == [(1024, False), (1024, True), (512, True)]
    with pytest.raises(TrainingFailedError, match=r"about 1\.1 GB of memory, and 1\.1 GB are free"):
        fit_into(1.1e9)


def test_what_was_asked_for_is_not_chosen_otherwise() -> None:
    assert fit_into(8e9, ComputeSettings(micro_batch_tokens=2048)) == (2048, False)
    assert fit_into(8e9, ComputeSettings(gradient_checkpointing=True)) == (1024, True)
    with pytest.raises(TrainingFailedError):
        fit_into(1.3e9, ComputeSettings(micro_batch_tokens=2048))
    with pytest.raises(TrainingFailedError):
        fit_into(2e9, ComputeSettings(gradient_checkpointing=False, micro_batch_tokens=2048))


def run(directory: Path, base_model: Path) -> list[TrainingEvent]:
    write_job(directory, ROWS, base_model=base_model)
    events: list[TrainingEvent] = []
    run_job(directory, events.append)
    torch.use_deterministic_algorithms(mode=False)
    return events


def test_a_job_too_large_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "model")
    monkeypatch.setattr(recipe, "free_memory", lambda: 500_000_000)

    *before, refused = run(tmp_path / "job", tmp_path / "model")

    assert isinstance(refused, Failed)
    assert refused.code == "not_enough_memory"
    assert "0.5 GB are free" in refused.message
    assert "Lower context_length" in refused.message
    assert not [event for event in before if isinstance(event, Started | Stepped)]


def test_a_job_that_takes_less_memory_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "model")
    run(tmp_path / "usual", tmp_path / "model")
    # Less than the usual way takes, but more than what computing layers twice does.
    peak = Footprint.peak
    monkeypatch.setattr(
        Footprint,
        "peak",
        lambda self, tokens, *, checkpointing: (
            peak(self, tokens, checkpointing=checkpointing) + (0 if checkpointing else 10**15)
        ),
    )

    events = run(tmp_path / "short", tmp_path / "model")

    said = [event.message for event in events if isinstance(event, Noted)]
    assert "each layer twice, which takes less memory" in said[-1]
    adapter = Path("out/step-9/adapter_model.safetensors")
    assert (tmp_path / "short" / adapter).read_bytes() == (
        tmp_path / "usual" / adapter
    ).read_bytes()


def test_the_trained_part_is_adapter_gradient_and_moments() -> None:
    one_layer = 64 * (576 + 576) + 64 * (576 + 192)
    assert footprint_of().trained == 30 * one_layer * 16
    assert footprint_of().base_model == 269_030_016
