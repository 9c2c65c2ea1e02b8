"""PiSSA and OLoRA train as in `peft`, and give an adapter for the unchanged base model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import Failed, Finished, Stepped, TrainingEvent
from app.core.job.lora_shape import LoraInitialisation, LoraShape
from app.core.job.training_config import TrainingConfig
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, build_batch
from tests.tiny import BASE_MODEL, build_model, chat_row, write_job, write_tiny_model
from worker.training.artifacts.checkpoint import write_adapter
from worker.training.model.base_model import attach_adapter
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.initialisation import freeze_start, split_weight
from worker.training.model.randomness import DropoutKey
from worker.training.recipe import run_job
from worker.training.step.step import build_optimizer, train_step

KINDS: tuple[LoraInitialisation, ...] = ("pissa_niter_16", "olora")
TARGETS = ("q_proj", "v_proj", "down_proj")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40, 60)[None], use_cache=False).logits


def adapters(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def shape_of(kind: LoraInitialisation) -> LoraShape:
    return LoraShape(rank=4, alpha=6, dropout=0, target_modules=TARGETS, init_lora_weights=kind)


def our_model(kind: LoraInitialisation) -> PeftModel:
    model = attach_adapter(build_model(), shape_of(kind), BASE_MODEL)
    freeze_start(model)
    return model


def model_of_peft(kind: LoraInitialisation) -> PeftModel:
    adapter = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=list(TARGETS),
        init_lora_weights=kind,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(build_model(), adapter).train()  # pyright: ignore[reportReturnType]


def take_steps(forward: Forward) -> None:
    optimizer = build_optimizer(forward.model, TrainingConfig(seed=0, learning_rate=1e-3))
    batch = [build_batch(RAGGED, PROMPTS)]
    for step in (1, 2):
        train_step(forward, optimizer, batch, dropout=DropoutKey(0, step), max_grad_norm=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_that_of_peft(kind: LoraInitialisation) -> None:
    usual = LoraShape(rank=4, alpha=6, target_modules=TARGETS)
    layer = adapters(attach_adapter(build_model(), usual, BASE_MODEL))[0]
    weight = layer.get_base_layer().weight.detach().clone()

    torch.manual_seed(1)
    ours = split_weight(weight, shape_of(kind), layer.scaling["default"])
    torch.manual_seed(1)
    layer.olora_init("default") if kind == "olora" else layer.pissa_init("default", kind)

    for our, half in zip(ours, (layer.lora_A, layer.lora_B), strict=True):
        torch.testing.assert_close(our, half["default"].weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_forward", [FusedForward, ReferenceForward])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_peft_and_the_adapter_fits_the_unchanged_base_model(
    tmp_path: Path, kind: LoraInitialisation, make_forward: type[FusedForward]
) -> None:
    theirs, ours = model_of_peft(kind), our_model(kind)
    starts: list[tuple[Tensor, Tensor]] = []
    for our, their in zip(adapters(ours), adapters(theirs), strict=True):
        a, b = (half["default"].weight.detach().clone() for half in (their.lora_A, their.lora_B))
        our.lora_A["default"].weight.data = torch.cat([a, a])
        our.lora_B["default"].weight.data = torch.cat([b, -b], dim=1)
        starts.append((a, b))

    take_steps(make_forward(ours))
    take_steps(ReferenceForward(theirs))
    write_adapter(tmp_path, ours)

    for our, their, (a, b) in zip(adapters(ours), adapters(theirs), starts, strict=True):
        our_a, our_b = our.lora_A["default"].weight, our.lora_B["default"].weight
        torch.testing.assert_close(our_a[:4], their.lora_A["default"].weight, rtol=0, atol=1e-4)
        torch.testing.assert_close(our_b[:, :4], their.lora_B["default"].weight, rtol=0, atol=1e-4)
        assert (our_a[:4] - a).abs().max() > 1e-3
        assert torch.equal(our_a[4:], a), "the start is frozen"
        assert torch.equal(our_b[:, 4:], -b)
    loaded = PeftModel.from_pretrained(build_model(), str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(ours), rtol=0, atol=0)
    torch.testing.assert_close(logits(loaded), logits(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_that_starts_from_the_base_model_changes_nothing_yet(
    kind: LoraInitialisation,
) -> None:
    expected = logits(build_model())

    torch.testing.assert_close(logits(our_model(kind)), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def base_model(tmp_path: Path) -> Iterator[Path]:
    write_tiny_model(tmp_path / "model")
    yield tmp_path / "model"
    torch.use_deterministic_algorithms(mode=False)


def run(directory: Path, base_model: Path, shape: LoraShape, **more: Any) -> list[TrainingEvent]:
    rows = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)]
    settings = {"epochs": 1, "learning_rate": 1e-3, "validation": rows[:3], **more}
    write_job(directory, rows, base_model=base_model, lora=shape, **settings)
    events: list[TrainingEvent] = []
    run_job(directory, events.append)
    return events


def first_loss(events: list[TrainingEvent]) -> float | None:
    """The validation loss of step 0."""
    return next(event.metrics.valid_loss for event in events if isinstance(event, Stepped))


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_in_bfloat16_starts_with_the_loss_of_the_base_model(
    tmp_path: Path, base_model: Path, kind: LoraInitialisation
) -> None:
    compute = ComputeSettings(dtype="bfloat16", compile=False)
    shape = LoraShape(rank=4, init_lora_weights=kind)

    events = run(tmp_path / "job", base_model, shape, compute=compute, checkpoint_steps=1)
    usual = run(tmp_path / "usual", base_model, LoraShape(rank=4), compute=compute)

    assert isinstance(events[-1], Finished), "the saved adapter is the one that was trained"
    first, last = (
        load_file(tmp_path / f"job/out/step-{step}/adapter_model.safetensors") for step in (1, 2)
    )
    for name in first:
        dimension = 0 if "lora_A" in name else 1
        (early, start), (late, still) = (step[name].chunk(2, dimension) for step in (first, last))
        assert torch.equal(start, still), "the start is frozen"
        assert not torch.equal(early, late)
    assert first_loss(events) == pytest.approx(first_loss(usual), rel=1e-3)
    assert "--max-lora-rank 8 " in (tmp_path / "job/out/step-2/README.md").read_text()


def test_a_rank_above_the_size_of_a_matrix_is_refused(tmp_path: Path, base_model: Path) -> None:
    refused = run(tmp_path / "job", base_model, LoraShape(rank=17, init_lora_weights="olora"))[-1]

    assert isinstance(refused, Failed)
    assert refused.code == "lora_rank_too_large"
    assert "at most 16, the smaller side of the matrix model.layers.0" in refused.message
