"""The shape of an adapter, rsLoRA, DoRA and the initialisations are those of `peft`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from app.core.job.child.training_events import Finished, Noted, TrainingEvent
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import TrainingConfig
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, build_batch
from tests.tiny import build_model, build_peft_model, chat_row, write_job, write_tiny_model
from worker.training.model.base_model import trainable_parameters
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.randomness import DropoutKey
from worker.training.recipe import run_job
from worker.training.step.step import build_optimizer, train_step

CONFIG = TrainingConfig(seed=0, learning_rate=1e-2)
MakeForward = Callable[[PeftModel], Forward]


def model_of_peft(**settings: Any) -> PeftModel:
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    adapter = LoraConfig(task_type="CAUSAL_LM", **(usual | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(build_model(), adapter).train()  # pyright: ignore[reportReturnType]


def take_steps(make_forward: MakeForward, model: PeftModel) -> list[torch.Tensor]:
    """The adapter after two steps; in the first, only B gets a gradient."""
    forward, optimizer = make_forward(model), build_optimizer(model, CONFIG)
    batch = [build_batch(RAGGED, PROMPTS)]
    for step in (1, 2):
        train_step(forward, optimizer, batch, dropout=DropoutKey(0, step), max_grad_norm=1.0)
    return list(trainable_parameters(model))


@pytest.mark.parametrize(
    ("make_forward", "variant", "of_peft"),
    [
        (FusedForward, {"rank": 8}, {"r": 8}),
        (FusedForward, {"alpha": 32.5}, {"lora_alpha": 32.5}),
        (FusedForward, {"target_modules": ("down_proj",)}, {"target_modules": ["down_proj"]}),
        (FusedForward, {"use_rslora": True}, {"use_rslora": True}),
        (ReferenceForward, {"use_rslora": True}, {"use_rslora": True}),
        (ReferenceForward, {"use_dora": True}, {"use_dora": True}),
        (FusedForward, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "gaussian"}),
        (FusedForward, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
    ],
    ids=[
        "rank",
        "alpha",
        "targets",
        "rslora-fast",
        "rslora-plain",
        "dora-plain",
        "gaussian-fast",
        "orthogonal",
    ],
)
def test_steps_are_those_of_peft_and_not_those_of_plain_lora(
    make_forward: MakeForward, variant: dict[str, Any], of_peft: dict[str, Any]
) -> None:
    ours = take_steps(make_forward, build_peft_model(is_trained=False, variant=variant))
    theirs = take_steps(ReferenceForward, model_of_peft(**of_peft))
    usual = take_steps(FusedForward, build_peft_model(is_trained=False))

    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-4)
    shapes, usual_shapes = ([each.shape for each in model] for model in (ours, usual))
    assert shapes != usual_shapes or any(
        (our - plain).abs().max() > 1e-3 for our, plain in zip(ours, usual, strict=True)
    )


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., list[TrainingEvent]]]:
    """Runs a job with an adapter of some variant in `tmp_path/job`."""
    write_tiny_model(tmp_path / "model")

    def run_with(**variant: Any) -> list[TrainingEvent]:
        rows = [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)]
        write_job(
            tmp_path / "job",
            rows,
            base_model=tmp_path / "model",
            epochs=1,
            learning_rate=1e-2,
            lora=LoraShape(rank=4, **variant),
        )
        events: list[TrainingEvent] = []
        run_job(tmp_path / "job", events.append)
        return events

    yield run_with
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize(
    ("variant", "is_plain"),
    [
        ({"use_rslora": True}, False),
        ({"init_lora_weights": "gaussian"}, False),
        ({"init_lora_weights": "orthogonal"}, False),
        ({"use_dora": True}, True),
        ({"use_dora": True, "use_rslora": True, "init_lora_weights": "gaussian"}, True),
    ],
    ids=["rslora", "gaussian", "orthogonal", "dora", "all"],
)
def test_a_job_with_a_variant_ends_with_an_adapter_that_peft_loads(
    run: Callable[..., list[TrainingEvent]],
    tmp_path: Path,
    variant: dict[str, Any],
    *,
    is_plain: bool,
) -> None:
    events = run(**variant)

    assert events[-1] == Finished(step=2, trained_tokens=events[-1].trained_tokens)  # pyright: ignore[reportAttributeAccessIssue]
    settings = json.loads((tmp_path / "job/out/step-2/adapter_config.json").read_text())
    # How the weights began says nothing about a trained adapter.
    assert settings.keys() & variant.keys() == variant.keys() - {"init_lora_weights"}
    card = (tmp_path / "job/out/step-2/README.md").read_text()
    assert ("do not know DoRA" in card) == is_plain
    (plan,) = [e for e in events if isinstance(e, Noted) and e.message.startswith("Training in")]
    why = "because the faster, fused layers have no DoRA"
    assert (why in plan.message, plan.level) == (is_plain, "warn" if is_plain else "info")
