import copy
import math
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from app.core.job.training_config import TrainingConfig
from tests.numerics.test_cross_entropy import PROMPTS, RAGGED, attention_mask, build_batch, cut_rows
from tests.tiny import build_peft_model
from worker.training.data.batching import MicroBatch
from worker.training.model.base_model import trainable_parameters
from worker.training.model.forward import Forward, FusedForward, ReferenceForward
from worker.training.model.randomness import DropoutKey, seed_torch
from worker.training.step.step import NotFiniteError, StepResult, build_optimizer, train_step

KEY = DropoutKey(seed=3, step=1)
FORWARDS = pytest.mark.parametrize("make_forward", [ReferenceForward, FusedForward])
MakeForward = Callable[[PeftModel], Forward]
CONFIG = TrainingConfig(seed=0, learning_rate=2e-4, weight_decay=0.01)


def cut(batch: MicroBatch, size: int) -> list[MicroBatch]:
    starts = range(0, len(batch.input_ids_BL), size)
    return [cut_rows(batch, i, i + size) for i in starts]


def step_of_ours(
    forward: Forward,
    pieces: list[MicroBatch],
    *,
    dropout: DropoutKey = KEY,
    config: TrainingConfig = CONFIG,
) -> StepResult:
    optimizer = build_optimizer(forward.model, config)
    return train_step(
        forward, optimizer, pieces, dropout=dropout, max_grad_norm=CONFIG.max_grad_norm
    )


def plain_step(
    model: PeftModel, batch: MicroBatch, lengths: tuple[int, ...]
) -> tuple[float, float]:
    """The same in the plain words of transformers, peft and torch. Returns loss and norm."""
    parameters = list(trainable_parameters(model))
    return step_with(
        torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.01, fused=False),
        model,
        batch,
        lengths,
    )


def step_with(
    optimizer: torch.optim.Optimizer,
    model: PeftModel,
    batch: MicroBatch,
    lengths: tuple[int, ...],
    *,
    max_grad_norm: float = 1.0,
) -> tuple[float, float]:
    parameters = list(trainable_parameters(model))
    loss = model(
        input_ids=batch.input_ids_BL,
        attention_mask=attention_mask(lengths),
        labels=batch.labels_BL,
        use_cache=False,
    ).loss
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@FORWARDS
def test_a_step_is_the_plain_step_of_transformers_and_peft(
    make_forward: MakeForward, model_type: str, size: int
) -> None:
    ours = build_peft_model(model_type)
    theirs = copy.deepcopy(ours)
    batch = build_batch(RAGGED, PROMPTS)

    result = step_of_ours(make_forward(ours), cut(batch, size))
    loss, norm = plain_step(theirs, batch, RAGGED)

    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    for our, their in zip(trainable_parameters(ours), trainable_parameters(theirs), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@FORWARDS
def test_steps_with_other_betas_are_those_of_torch(make_forward: MakeForward) -> None:
    config = CONFIG.model_copy(update={"adam_beta1": 0.5, "adam_beta2": 0.9})
    ours = build_peft_model()
    theirs = copy.deepcopy(ours)
    usual = copy.deepcopy(ours)

    assert_steps_are_equal(
        make_forward(ours),
        build_optimizer(ours, config),
        theirs,
        torch.optim.AdamW(
            trainable_parameters(theirs), lr=2e-4, weight_decay=0.01, betas=(0.5, 0.9)
        ),
    )
    take_two_steps(FusedForward(usual), build_optimizer(usual, CONFIG))
    assert largest_difference(ours, usual) > 1e-5


@pytest.mark.parametrize(
    ("knob", "value"), [("learning_rate", 1e-3), ("weight_decay", 1.0), ("max_grad_norm", 1e-8)]
)
def test_a_step_with_a_knob_of_the_optimizer_is_that_of_torch(knob: str, value: float) -> None:
    usual_config = TrainingConfig(seed=0, learning_rate=1e-2)
    config = usual_config.model_copy(update={knob: value})
    ours, usual = build_peft_model(), build_peft_model()
    theirs = copy.deepcopy(ours)
    batch = build_batch(RAGGED, PROMPTS)

    for model, its in ((ours, config), (usual, usual_config)):
        optimizer, norm = build_optimizer(model, its), its.max_grad_norm
        train_step(FusedForward(model), optimizer, [batch], dropout=KEY, max_grad_norm=norm)
    their_optimizer = torch.optim.AdamW(
        trainable_parameters(theirs), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step_with(their_optimizer, theirs, batch, RAGGED, max_grad_norm=config.max_grad_norm)

    assert largest_difference(ours, theirs) < 1e-4
    assert largest_difference(ours, usual) > 1e-3


@FORWARDS
def test_steps_of_lora_plus_are_those_of_peft(make_forward: MakeForward) -> None:
    config = CONFIG.model_copy(update={"loraplus_lr_ratio": 16.0})
    ours = build_peft_model()
    theirs = copy.deepcopy(ours)
    usual = copy.deepcopy(ours)

    assert_steps_are_equal(
        make_forward(ours),
        build_optimizer(ours, config),
        theirs,
        create_loraplus_optimizer(
            theirs,
            torch.optim.AdamW,
            lr=2e-4,
            loraplus_lr_ratio=16.0,
            loraplus_weight_decay=0.01,
        ),
    )
    take_two_steps(FusedForward(usual), build_optimizer(usual, CONFIG))
    assert largest_difference(ours, usual) > 1e-3


def assert_steps_are_equal(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    theirs: PeftModel,
    their_optimizer: torch.optim.Optimizer,
) -> None:
    """Take two steps, because betas show only in the second."""
    batch = build_batch(RAGGED, PROMPTS)
    take_two_steps(forward, optimizer)
    for _ in range(2):
        step_with(their_optimizer, theirs, batch, RAGGED)
    assert largest_difference(forward.model, theirs) < 1e-4


def take_two_steps(forward: Forward, optimizer: torch.optim.Optimizer) -> None:
    batch = build_batch(RAGGED, PROMPTS)
    for _ in range(2):
        train_step(forward, optimizer, [batch], dropout=KEY, max_grad_norm=1.0)


def largest_difference(one: PeftModel, other: PeftModel) -> float:
    pairs = zip(trainable_parameters(one), trainable_parameters(other), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_a_step_with_dropout_is_the_plain_step_with_the_same_masks() -> None:
    ours = build_peft_model(dropout=0.3)
    theirs = copy.deepcopy(ours)
    batch = build_batch(RAGGED, PROMPTS)

    result = step_of_ours(ReferenceForward(ours), [batch])
    seed_torch(KEY.seed, KEY.step, batch.examples[0])
    loss, _ = plain_step(theirs, batch, RAGGED)

    assert result.loss == pytest.approx(loss, rel=1e-5)
    for our, their in zip(trainable_parameters(ours), trainable_parameters(theirs), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@FORWARDS
def test_dropout_is_drawn_anew_in_every_step(make_forward: MakeForward) -> None:
    batch = build_batch(RAGGED, PROMPTS)
    losses: list[float] = []
    for seed, step in ((3, 1), (3, 1), (3, 2), (4, 1)):
        forward = make_forward(build_peft_model(dropout=0.3))
        result = step_of_ours(forward, [batch], dropout=DropoutKey(seed, step))
        losses.append(result.loss)

    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    ("make_forward", "dropout"), [(ReferenceForward, 0.0), (FusedForward, 0.0), (FusedForward, 0.3)]
)
def test_a_step_does_not_depend_on_how_its_batch_is_cut(
    make_forward: MakeForward, dropout: float, size: int
) -> None:
    whole = build_batch(RAGGED, PROMPTS)
    one, other = build_peft_model(dropout=dropout), build_peft_model(dropout=dropout)

    expected = step_of_ours(make_forward(one), [whole])
    result = step_of_ours(make_forward(other), cut(whole, size))

    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert result.accuracy == expected.accuracy
    for a, b in zip(trainable_parameters(one), trainable_parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_only_the_adapter_changes() -> None:
    model = build_peft_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    step_of_ours(FusedForward(model), [build_batch(RAGGED, PROMPTS)])

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name


def test_the_adapter_and_the_optimizer_are_in_float32() -> None:
    model = build_peft_model()
    optimizer = build_optimizer(model, CONFIG)
    batch = build_batch(RAGGED, PROMPTS)
    train_step(FusedForward(model), optimizer, [batch], dropout=KEY, max_grad_norm=1.0)

    tensors = [*trainable_parameters(model)]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_loss_falls_on_one_batch() -> None:
    model = build_peft_model(is_trained=False)
    config = TrainingConfig(seed=0, learning_rate=3e-2)
    optimizer = build_optimizer(model, config)
    batch = [build_batch(RAGGED, PROMPTS)]

    results = [
        train_step(FusedForward(model), optimizer, batch, dropout=KEY, max_grad_norm=1.0)
        for _ in range(40)
    ]

    assert results[-1].loss < 0.5 * results[0].loss
    assert results[-1].accuracy > results[0].accuracy


def test_a_large_gradient_is_scaled_down_and_reported_as_it_was() -> None:
    batch = build_batch(RAGGED, PROMPTS)
    free, clipped = build_peft_model(), build_peft_model()

    results: list[StepResult] = []
    for model, max_grad_norm in ((free, 1000.0), (clipped, 0.01)):
        optimizer = torch.optim.SGD(trainable_parameters(model), lr=1.0)
        results.append(
            train_step(
                FusedForward(model), optimizer, [batch], dropout=KEY, max_grad_norm=max_grad_norm
            )
        )

    start = list(trainable_parameters(build_peft_model()))
    moved = [
        math.sqrt(
            sum(
                (after - before).square().sum().item()
                for after, before in zip(trainable_parameters(model), start, strict=True)
            )
        )
        for model in (free, clipped)
    ]
    assert results[0].grad_norm == results[1].grad_norm
    assert moved == pytest.approx([results[0].grad_norm, 0.01], rel=1e-3)


def test_a_batch_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="No token"):
        step_of_ours(FusedForward(build_peft_model()), [build_batch((5, 5), (5, 5))])


def test_a_loss_that_is_not_finite_takes_no_step() -> None:
    model = build_peft_model()
    first = next(trainable_parameters(model))
    with torch.no_grad():
        first[0, 0] = float("inf")
    before = [p.detach().clone() for p in trainable_parameters(model)]

    with pytest.raises(NotFiniteError):
        step_of_ours(FusedForward(model), [build_batch(RAGGED, PROMPTS)])

    for parameter, old in zip(trainable_parameters(model), before, strict=True):
        assert torch.equal(parameter, old)
