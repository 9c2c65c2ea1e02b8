"""`lora_layers`: an adapter in some of the layers only, as `peft` trains it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from app.core.job.child.job_spec import ComputeSettings
from app.core.job.child.training_events import Failed, Finished, TrainingEvent
from app.core.job.lora_shape import LoraShape
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, build_batch
from tests.numerics.test_trained_embeddings import our_steps as take_steps
from tests.numerics.test_trained_embeddings import steps_of_torch, trained
from tests.tiny import build_model, build_peft_model, chat_row, write_job, write_tiny_model
from worker.training.model.decoder_layer import decoder_layer
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.recipe import run_job

LAYERS = 4


def checkpointed(model: PeftModel) -> Forward:
    return FusedForward(model, is_checkpointing=True)


def build(layers: object, model_type: str = "llama", **shape: object) -> PeftModel:
    return build_peft_model(
        model_type,
        is_trained=False,
        num_hidden_layers=LAYERS,
        variant={"layers": layers, **shape},
    )


def model_of_peft(layers: list[int], model_type: str) -> PeftModel:
    adapter = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        layers_to_transform=layers,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = build_model(model_type, num_hidden_layers=LAYERS)
        return get_peft_model(base, adapter).train()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("make_forward", [FusedForward, checkpointed, ReferenceForward])
@pytest.mark.parametrize(
    ("model_type", "layers", "indices"),
    [("llama", 1, [3]), ("llama", (2, 0), [0, 2]), ("gemma", (1, 2), [1, 2]), ("qwen3", 2, [2, 3])],
)
def test_steps_are_those_of_peft_on_the_same_layers(
    make_forward: Callable[[PeftModel], Forward],
    model_type: str,
    layers: object,
    indices: list[int],
) -> None:
    ours, theirs = build(layers, model_type), model_of_peft(indices, model_type)
    before = {name: weights.clone() for name, weights in trained(ours).items()}

    take_steps(make_forward, ours)
    steps_of_torch(theirs)

    assert trained(ours).keys() == trained(theirs).keys()
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in before} == set(indices)
    for name, weights in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name], weights, rtol=0, atol=1e-4)
        assert not torch.equal(weights, before[name])


@pytest.mark.parametrize(("shape", "first"), [({}, 2), ({"modules_to_save": ("embed_tokens",)}, 0)])
def test_the_backward_pass_stops_at_the_first_layer_that_needs_it(
    shape: dict[str, Any], first: int
) -> None:
    has_backward: list[bool] = []

    def run(*arguments: Any) -> Tensor:
        has_backward.append(torch.is_grad_enabled())
        return decoder_layer(*arguments)

    forward = FusedForward(build((2, 3), **shape), layer=run)

    forward.log_probs(build_batch(RAGGED, PROMPTS), None).log_probs_N.sum().backward()

    assert has_backward == [index >= first for index in range(LAYERS)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., list[TrainingEvent]]]:
    """Runs a job on a tiny model of four layers in `tmp_path/job`."""

    def run_with(layers: Any, **compute: Any) -> list[TrainingEvent]:
        write_tiny_model(tmp_path / "model", num_hidden_layers=LAYERS)
        write_job(
            tmp_path / "job",
            [chat_row(f"What is {i}?", f"It is {i * 'x'}.") for i in range(8)],
            base_model=tmp_path / "model",
            compute=ComputeSettings(**compute),
            epochs=1,
            learning_rate=1e-2,
            lora=LoraShape(rank=4, layers=layers),
        )
        events: list[TrainingEvent] = []
        run_job(tmp_path / "job", events.append)
        return events

    yield run_with
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize("forward", ["fast", "plain"])
def test_a_whole_job_trains_and_names_these_layers(
    run: Callable[..., list[TrainingEvent]], tmp_path: Path, forward: str
) -> None:
    events = run(2, forward=forward)

    assert isinstance(events[-1], Finished)
    adapter = tmp_path / "job/out" / f"step-{events[-1].step}"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["layers_to_transform"] == [2, 3]
    names = load_file(adapter / "adapter_model.safetensors")
    assert {name.split(".layers.")[1][0] for name in names} == {"2", "3"}


@pytest.mark.parametrize("layers", [5, (4,)])
def test_layers_that_the_base_model_has_not_are_refused(
    run: Callable[..., list[TrainingEvent]], layers: object
) -> None:
    last = run(layers)[-1]

    assert isinstance(last, Failed)
    assert (last.code, last.param) == ("unknown_target_module", "hyperparameters.lora_layers")
    assert "lora_layers" in last.message
