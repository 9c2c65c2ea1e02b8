import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.tiny import VOCABULARY, build_peft_model
from worker.training.data.batching import MicroBatch
from worker.training.data.beginnings import find_owners
from worker.training.data.dataset import IGNORE_INDEX
from worker.training.model.cross_entropy import TargetLogProbs
from worker.training.model.forward import PLAIN_HEADS, ReferenceForward
from worker.training.model.randomness import DropoutKey

CAPPED_OR_SCALED = ("gemma2", "granite")
"""Architectures that do more to their logits than the head does."""


def build_batch(lengths: tuple[int, ...], prompts: tuple[int, ...], *, pad: int = 0) -> MicroBatch:
    """Rows of random tokens, of which the first `prompts` are not learned."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((len(lengths), max(lengths)), pad)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        tokens = torch.randint(1, VOCABULARY, (length,), generator=generator)
        input_ids[row, :length] = tokens
        labels[row, prompt:length] = tokens[prompt:]
    rows = [row[:length].numpy() for row, length in zip(input_ids, lengths, strict=True)]
    owners = find_owners(rows, range(len(rows)))
    return MicroBatch(input_ids, labels, range(len(rows)), lengths, owners, sum(lengths))


def cut_rows(batch: MicroBatch, start: int, end: int) -> MicroBatch:
    """Some of its rows, with the padding that they have there."""
    return MicroBatch(
        batch.input_ids_BL[start:end],
        batch.labels_BL[start:end],
        batch.examples[start:end],
        batch.lengths[start:end],
        batch.owners[start:end],
        sum(batch.lengths[start:end]),
    )


def attention_mask(lengths: tuple[int, ...]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def score_learned_tokens(model: PeftModel, batch: MicroBatch) -> TargetLogProbs:
    return ReferenceForward(model).log_probs(batch, DropoutKey(0, 0))


RAGGED = (12, 9, 20, 7)
PROMPTS = (2, 8, 1, 3)
"""The second row has an answer of one token."""


@pytest.mark.parametrize("model_type", sorted(PLAIN_HEADS | set(CAPPED_OR_SCALED)))
def test_our_loss_and_its_gradient_are_the_models_own(model_type: str) -> None:
    model = build_peft_model(model_type, target_modules=("o_proj", "down_proj"))
    batch = build_batch(RAGGED, PROMPTS)
    adapter = [p for p in model.parameters() if p.requires_grad]

    log_probs = score_learned_tokens(model, batch).log_probs_N
    ours = -log_probs.mean()
    our_gradient = torch.autograd.grad(ours, adapter)
    theirs = model(
        input_ids=batch.input_ids_BL,
        attention_mask=attention_mask(RAGGED),
        labels=batch.labels_BL,
        use_cache=False,
    ).loss
    their_gradient = torch.autograd.grad(theirs, adapter)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for our, their in zip(our_gradient, their_gradient, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_token_is_on_top_when_it_is_the_models_first_choice(model_type: str) -> None:
    model = build_peft_model(model_type)
    batch = build_batch((12,), (2,))
    logits = model(input_ids=batch.input_ids_BL, use_cache=False).logits
    chosen = logits[0].argmax(dim=-1)
    batch.labels_BL[0, 5] = chosen[4]
    batch.labels_BL[0, 9] = chosen[8]

    is_top = score_learned_tokens(model, batch).is_top_N

    expected = chosen[1:-1] == batch.labels_BL[0, 2:]
    assert is_top.tolist() == expected.tolist()
    assert is_top[3]
    assert is_top[7]


def test_the_loss_does_not_depend_on_the_chunks_it_is_computed_in() -> None:
    model = build_peft_model()
    lengths = (200, 180, 190)  # more learned tokens than a chunk has
    batch = build_batch(lengths, (1, 1, 1))

    together = score_learned_tokens(model, batch).log_probs_N
    alone = [
        score_learned_tokens(model, cut_rows(batch, i, i + 1)).log_probs_N
        for i in range(len(lengths))
    ]

    assert len(together) == sum(lengths) - len(lengths)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_padding_changes_nothing_whatever_it_holds(model_type: str) -> None:
    model = build_peft_model(model_type)

    zeros = score_learned_tokens(model, build_batch(RAGGED, PROMPTS, pad=0)).log_probs_N
    others = score_learned_tokens(model, build_batch(RAGGED, PROMPTS, pad=99)).log_probs_N
    alone = [
        score_learned_tokens(model, build_batch(RAGGED[: i + 1], PROMPTS[: i + 1])).log_probs_N
        for i in range(len(RAGGED))
    ]

    torch.testing.assert_close(zeros, others, rtol=0, atol=0)
    torch.testing.assert_close(zeros, alone[-1], rtol=0, atol=0)
    first = zeros[: len(alone[0])]
    torch.testing.assert_close(first, alone[0], rtol=1e-4, atol=1e-5)


def test_without_gradients_none_are_formed() -> None:
    model = build_peft_model()

    with torch.no_grad():
        scores = score_learned_tokens(model, build_batch(RAGGED, PROMPTS))

    assert not scores.log_probs_N.requires_grad
