"""Our forward pass against the plain one of transformers and peft: ratings and every gradient."""

import copy

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tests.numerics.test_losses import PROMPTS, RAGGED, build_batch
from tests.tiny import build_peft_model
from worker.training.batching import MicroBatch
from worker.training.dropout import DropoutKey, DropoutRate, random_bits
from worker.training.fast_forward import FastForward
from worker.training.forward import Forward, PlainForward
from worker.training.model import trainable_parameters

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
    log_probs = forward.score(batch, KEY).log_probs_N
    adapter = list(trainable_parameters(forward.model))
    return log_probs.detach(), list(torch.autograd.grad(-log_probs.mean(), adapter))


def assert_same(ours: Forward, theirs: Forward, batch: MicroBatch, *, rel: float) -> None:
    """Equal up to a part `rel` of the largest number of each tensor."""
    our_scores, our_gradients = gradients(ours, batch)
    their_scores, their_gradients = gradients(theirs, batch)
    pairs = [(our_scores, their_scores), *zip(our_gradients, their_gradients, strict=True)]
    for our, their in pairs:
        largest = their.abs().max().item()
        torch.testing.assert_close(our, their, rtol=0, atol=rel * largest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_computes_what_the_plain_code_computes(model_type: str, shape: str) -> None:
    model = build_peft_model(model_type, target_modules=EVERY_LINEAR)

    assert_same(FastForward(model), PlainForward(model), build_batch(*SHAPES[shape]), rel=1e-5)


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

    assert_same(FastForward(model), PlainForward(model), build_batch(RAGGED, PROMPTS), rel=1e-5)


def test_rows_too_long_for_products_are_the_same() -> None:
    model = build_peft_model(max_position_embeddings=2048)

    assert_same(FastForward(model), PlainForward(model), build_batch((1100,), (900,)), rel=1e-5)


class GivenMask(nn.Module):
    """Dropout that keeps what it is told to."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self._factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factor


def give_masks(model: PeftModel, batch: MicroBatch, probability: float) -> None:
    """Have the plain code drop what ours drops."""
    rate = DropoutRate.of(probability)
    adapted = [one for one in model.modules() if isinstance(one, LoraLayer)]
    widths = [one.in_features for one in adapted]
    bits = random_bits(KEY, batch, widths)
    for one, bits_of_one in zip(adapted, bits, strict=True):
        factor = (bits_of_one >= rate.threshold) * rate.scale
        one.lora_dropout["default"] = GivenMask(factor)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_with_the_same_masks_dropout_is_the_same(model_type: str) -> None:
    ours = build_peft_model(model_type, target_modules=EVERY_LINEAR, dropout=0.3)
    theirs = copy.deepcopy(ours)
    batch = build_batch(RAGGED, PROMPTS)
    give_masks(theirs, batch, 0.3)

    assert_same(FastForward(ours), PlainForward(theirs), batch, rel=1e-5)
