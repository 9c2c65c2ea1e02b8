"""The loss of preference tuning is that of TRL's `DPOTrainer`, and so are gradients and rewards."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from app.core.job.training_config import DpoSettings
from tests.tiny import RowsInMemory, build_peft_model, build_tokenizer
from worker.training.data.batching import MicroBatch, read_micro_batches
from worker.training.data.dataset import IGNORE_INDEX, TokenizedRow
from worker.training.model.base_model import trainable_parameters
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.randomness import DropoutKey
from worker.training.step.objective import Preferences, score_rows
from worker.training.step.step import StepResult, evaluate, train_step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

KEY = DropoutKey(seed=3, step=1)
PAIRS = [(5, 9, 4), (12, 1, 7), (3, 6, 6), (8, 14, 2)]
"""Tokens of a prompt, of its preferred answer, and of the other one."""

VARIANTS = {
    "sigmoid": DpoSettings(beta=0.3),
    "reference-free": DpoSettings(beta=0.05, reference_free=True),
    "length-normalized": DpoSettings(beta=2.0, length_normalized=True),
    "length-normalized-reference-free": DpoSettings(
        beta=2.0, length_normalized=True, reference_free=True
    ),
    "smoothed": DpoSettings(beta=0.3, label_smoothing=0.1),
    "smoothed-reference-free": DpoSettings(beta=0.05, label_smoothing=0.4, reference_free=True),
}


def make_pairs() -> list[dict[str, list[int]]]:
    random = np.random.default_rng(0)

    def draw(tokens: int) -> list[int]:
        return random.integers(1, 250, tokens).tolist()

    return [
        {"prompt_ids": draw(prompt), "chosen_ids": draw(chosen), "rejected_ids": draw(rejected)}
        for prompt, chosen, rejected in PAIRS
    ]


def as_data(pairs: list[dict[str, list[int]]]) -> RowsInMemory:
    rows: list[TokenizedRow] = []
    for pair in pairs:
        for answer in (pair["chosen_ids"], pair["rejected_ids"]):
            input_ids = np.array(pair["prompt_ids"] + answer)
            labels = np.where(np.arange(len(input_ids)) < len(pair["prompt_ids"]), -100, input_ids)
            assert IGNORE_INDEX == -100
            rows.append(TokenizedRow(input_ids, labels))
    return RowsInMemory(rows)


def cut(data: RowsInMemory, pairs: int) -> Iterator[MicroBatch]:
    for start in range(0, len(data), 2 * pairs):
        yield from read_micro_batches(
            data,
            np.arange(start, min(start + 2 * pairs, len(data))),
            rows_per_example=2,
            micro_batch_tokens=1_000_000,
            is_padded=True,
            pad_token_id=0,
        )


def change(model: PeftModel) -> None:
    """Move the adapter away from the reference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(model: PeftModel) -> list[torch.Tensor]:
    return [one.grad.clone() for one in trainable_parameters(model) if one.grad is not None]


class KeepsGradients(torch.optim.SGD):
    """Takes no step and keeps what it was given."""

    def __init__(self, model: PeftModel) -> None:
        super().__init__(list(trainable_parameters(model)), lr=0.0)
        self.model = model

    def step(self, closure: Any = None) -> None:
        del closure
        self.seen = gradients(self.model)


def step_of_ours(
    forward: Forward, settings: DpoSettings, *, pairs_at_once: int
) -> tuple[StepResult, list[torch.Tensor]]:
    """A step whose reference is the model before `change`."""
    data = as_data(make_pairs())
    reference = score_rows(forward, cut(data, 3), rows=len(data))
    change(forward.model)
    optimizer = KeepsGradients(forward.model)
    result = train_step(
        forward,
        optimizer,
        list(cut(data, pairs_at_once)),
        dropout=KEY,
        max_grad_norm=1e9,
        objective=Preferences(settings, None if settings.reference_free else reference),
    )
    return result, optimizer.seen


def trl_trainer(model: PeftModel, settings: DpoSettings, directory: Path) -> Any:
    """TRL's trainer. Its reference is a copy of the adapter as it is now.

    Its releases have no label smoothing of the plain loss any more. `aot_unpaired` is the same if
    it is given one pair at a time.
    """
    loss_type = "sigmoid_norm" if settings.length_normalized else "sigmoid"
    arguments = DPOConfig(
        output_dir=str(directory),
        beta=settings.beta,
        loss_type=["aot_unpaired" if settings.label_smoothing else loss_type],
        label_smoothing=settings.label_smoothing,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    return DPOTrainer(model, args=arguments, train_dataset=text, processing_class=build_tokenizer())


def loss_of_trl(
    model: PeftModel, settings: DpoSettings, directory: Path
) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    trainer = trl_trainer(model, settings, directory)
    change(model)
    pairs = make_pairs()
    for parameter in model.parameters():
        parameter.grad = None
    batches = [[pair] for pair in pairs] if settings.label_smoothing else [pairs]
    total = 0.0
    for batch in batches:
        inputs = trainer.data_collator(batch)
        if settings.reference_free:  # TRL has dropped it: a reference that gives all the same
            trainer.precompute_ref_logps = True
            zeros = torch.zeros(len(batch))
            inputs |= {"ref_chosen_logps": zeros, "ref_rejected_logps": zeros}
        loss = trainer.compute_loss(model, inputs) / len(batches)
        loss.backward()
        total += loss.item()
    seen = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    return total, gradients(model), seen


SINGLE = DpoSettings(beta=0.5, label_smoothing=0.2, length_normalized=True)


def test_the_loss_of_a_pair_is_the_formula() -> None:
    """With label smoothing and the mean over tokens, which TRL does not have together."""
    forward = FusedForward(build_peft_model())
    data = as_data(make_pairs()[:1])
    before = score_rows(forward, cut(data, 1), rows=2).tolist()
    change(forward.model)
    after = score_rows(forward, cut(data, 1), rows=2).tolist()

    seen = evaluate(forward, cut(data, 1), Preferences(SINGLE, torch.tensor(before)))

    _, chosen, rejected = PAIRS[0]
    rewards = [
        0.5 * (a - b) / tokens
        for a, b, tokens in zip(after, before, (chosen, rejected), strict=True)
    ]
    probability = 1 / (1 + math.exp(rewards[1] - rewards[0]))
    loss = -0.8 * math.log(probability) - 0.2 * math.log(1 - probability)
    assert seen.loss == pytest.approx(loss, rel=1e-5)
    assert seen.rewards is not None
    assert [seen.rewards.chosen, seen.rewards.rejected] == pytest.approx(rewards, rel=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_before_the_first_step_all_rewards_are_zero(model_type: str) -> None:
    forward = FusedForward(build_peft_model(model_type))
    data = as_data(make_pairs())
    reference = score_rows(forward, cut(data, 4), rows=len(data))

    seen = evaluate(forward, cut(data, 1), Preferences(DpoSettings(), reference))

    assert seen.loss == pytest.approx(math.log(2), abs=1e-6)
    assert seen.rewards is not None
    assert abs(seen.rewards.chosen) < 1e-5 > abs(seen.rewards.rejected)


@pytest.mark.parametrize("pairs_at_once", [1, 3, 4])
@pytest.mark.parametrize("make_forward", [FusedForward, ReferenceForward])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_rewards_are_those_of_trl(
    variant: str, make_forward: Callable[[PeftModel], Forward], pairs_at_once: int, tmp_path: Path
) -> None:
    settings = VARIANTS[variant]
    ours = build_peft_model()
    theirs = copy.deepcopy(ours)

    result, gradient = step_of_ours(make_forward(ours), settings, pairs_at_once=pairs_at_once)
    loss, expected, seen = loss_of_trl(theirs, settings, tmp_path)

    assert result.loss == pytest.approx(loss, abs=1e-4, rel=1e-4)
    assert len(gradient) == len(expected) > 0
    for our, their in zip(gradient, expected, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)
    assert max(one.abs().max().item() for one in expected) > 1e-2
    assert result.rewards is not None
    if not settings.label_smoothing:  # pairs one by one have a mean of means
        assert result.accuracy == pytest.approx(seen["mean_token_accuracy"])
    if not settings.length_normalized:  # TRL's rewards are then not what its loss compares
        assert result.rewards.chosen == pytest.approx(seen["rewards/chosen"], rel=1e-4)
        assert result.rewards.rejected == pytest.approx(seen["rewards/rejected"], rel=1e-4)
        assert result.rewards.accuracy == seen["rewards/accuracies"]
