"""The fused forward against the reference: log-probabilities and every gradient."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch.nn.utils.rnn import pad_sequence

from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, build_batch, cut_rows
from tests.tiny import build_model, build_peft_model
from worker.training.data.batching import MicroBatch
from worker.training.model.base_model import ModelShape, trainable_parameters
from worker.training.model.decoder_layer import (
    compile_layer,
)
from worker.training.model.forward import (
    Forward,
    FusedForward,
    ReferenceForward,
    has_fused_layers,
    why_not_fused,
)
from worker.training.model.packing import pack
from worker.training.model.randomness import DropoutKey, DropoutRate, Masks

FAMILIES = ("gemma", "llama", "mistral", "qwen2", "qwen3")
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KEY = DropoutKey(seed=3, step=1)
SHAPES = {
    "ragged": (RAGGED, PROMPTS),
    "one row": ((20,), (3,)),
    "one learned token": ((9,), (8,)),
    "at the limit": ((512, 512), (1, 500)),
}


def gradients(forward: Forward, batch: MicroBatch) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradient of their mean by every parameter of the adapter."""
    log_probs = forward.log_probs(batch, KEY).log_probs_N
    adapter = list(trainable_parameters(forward.model))
    return log_probs.detach(), list(torch.autograd.grad(-log_probs.mean(), adapter))


def assert_same(ours: Forward, theirs: Forward, batch: MicroBatch, *, rel: float) -> None:
    """Equal up to a part `rel` of the largest number of each tensor."""
    our_scores, our_gradients = gradients(ours, batch)
    their_scores, their_gradients = gradients(theirs, batch)
    pairs = [(our_scores, their_scores), *zip(our_gradients, their_gradients, strict=True)]
    for our, their in pairs:
        largest = their.abs().max().item()
        torch.testing.assert_close(our.cpu(), their, rtol=0, atol=rel * largest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_computes_what_the_plain_code_computes(model_type: str, shape: str) -> None:
    model = build_peft_model(model_type, target_modules=EVERY_LINEAR)

    assert_same(FusedForward(model), ReferenceForward(model), build_batch(*SHAPES[shape]), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=",".join,
)
def test_it_knows_what_an_architecture_leaves_open(changes: dict[str, object]) -> None:
    model = build_peft_model("llama", **changes)

    assert_same(
        FusedForward(model), ReferenceForward(model), build_batch(RAGGED, PROMPTS), rel=1e-5
    )


def test_rows_too_long_for_products_are_the_same() -> None:
    model = build_peft_model(max_position_embeddings=2048)

    assert_same(
        FusedForward(model), ReferenceForward(model), build_batch((1100,), (900,)), rel=1e-5
    )


class GivenMask(nn.Module):
    """Dropout that keeps what it is told to."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factor


def give_masks(model: PeftModel, batch: MicroBatch, probability: float) -> None:
    """Have the plain code drop what ours drops. Ours is given one row at a time."""
    rate = DropoutRate.of(probability)
    layers: Any = model.get_base_model().base_model.layers
    rows = [pack(cut_rows(batch, row, row + 1)) for row in range(len(batch.lengths))]
    masks = [Masks(KEY, row.drawn, rate, layers=len(layers)) for row in rows]
    for index, layer in enumerate(layers):
        adapted = [one for one in layer.modules() if isinstance(one, LoraLayer)]
        drawn = [each.draw(index, [one.in_features for one in adapted]) for each in masks]
        for one, of_rows in zip(adapted, zip(*drawn, strict=True), strict=True):
            is_kept = pad_sequence(of_rows, batch_first=True, padding_value=True)
            one.lora_dropout["default"] = GivenMask(is_kept * rate.scale)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_with_the_same_masks_dropout_is_the_same(model_type: str) -> None:
    ours = build_peft_model(model_type, target_modules=EVERY_LINEAR, dropout=0.3)
    theirs = copy.deepcopy(ours)
    batch = build_batch(RAGGED, PROMPTS)
    give_masks(theirs, batch, 0.3)

    assert_same(FusedForward(ours), ReferenceForward(theirs), batch, rel=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_bfloat16_it_is_about_what_the_plain_code_computes_in_float32(model_type: str) -> None:
    exact = build_peft_model(model_type, target_modules=EVERY_LINEAR, initializer_range=0.1)
    rounded = copy.deepcopy(exact)
    for parameter in rounded.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)

    assert_same(
        FusedForward(rounded), ReferenceForward(exact), build_batch(RAGGED, PROMPTS), rel=0.1
    )


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("olmo2", {}, "the architecture olmo2 is not one of "),
        ("mistral", {"sliding_window": 16}, "its attention window of 16 tokens"),
        ("llama", {"hidden_act": "relu"}, "its activation relu is not supported"),
        ("llama", {"attention_dropout": 0.1}, "dropout in its attention"),
    ],
)
def test_a_model_that_fused_layers_do_not_support_has_a_reason(
    tmp_path: Path, model_type: str, changes: dict[str, object], reason: str
) -> None:
    build_model(model_type, **changes).save_pretrained(tmp_path)

    assert reason in (why_not_fused(ModelShape.read(tmp_path), longest_row=20) or "")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fused_layers_support_these(tmp_path: Path, model_type: str) -> None:
    build_model(model_type).save_pretrained(tmp_path)

    assert why_not_fused(ModelShape.read(tmp_path), longest_row=512) is None
    assert has_fused_layers(build_model(model_type))


def test_layers_of_another_kind_are_noticed_once_they_are_loaded() -> None:
    model = build_peft_model("llama")
    base: Any = model.get_base_model()
    base.base_model.layers[1].extra_norm = nn.Identity()

    assert not has_fused_layers(base)
    assert not has_fused_layers(build_model("olmo2"))


@pytest.mark.parametrize("build", [FusedForward, ReferenceForward])
def test_layers_computed_twice_change_no_bit(
    build: Callable[..., Forward],
) -> None:
    once = build(build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3))
    twice = build(build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3), is_checkpointing=True)
    batch = build_batch(RAGGED, PROMPTS)

    assert_same(twice, once, batch, rel=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own compiler
@dynamo_config.patch(error_on_recompile=True)
def test_one_compiled_graph_serves_rows_of_every_length() -> None:
    model = build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3)
    compiled = compile_layer()

    for shape in ((12, 9, 20, 7), (30, 8), (5, 5, 6)):
        batch = build_batch(shape, (1,) * len(shape))
        ours = FusedForward(model, layer=compiled)
        assert_same(ours, FusedForward(model), batch, rel=1e-5)
