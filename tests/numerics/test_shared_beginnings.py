"""What rows have in common at their beginnings is computed once, with the same gradients."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.numerics.test_cross_entropy import cut_rows
from tests.numerics.test_forward import (
    EVERY_LINEAR,
    FAMILIES,
    KEY,
    assert_same,
    give_masks,
    gradients,
)
from tests.tiny import VOCABULARY, build_peft_model
from worker.training.data.batching import MicroBatch, collate
from worker.training.data.beginnings import find_owners, find_segments
from worker.training.data.dataset import IGNORE_INDEX, TokenizedRow
from worker.training.model import attention, packing
from worker.training.model.decoder_layer import compile_layer
from worker.training.model.forward import FusedForward, ReferenceForward
from worker.training.model.packing import pack
from worker.training.model.randomness import DropoutKey

RANDOM = np.random.default_rng(1)
STEM = RANDOM.integers(VOCABULARY, size=300)
"""Tokens that rows begin with."""

Row = tuple[tuple[int, ...], int]
"""Tokens, and how many of them are not learned."""


def row(*parts: tuple[int, int], prompt: int = 1) -> Row:
    """A row of parts that are each the same for one number.

    Args:
        parts: number and length of each part.
        prompt: tokens that are not learned.
    """
    tokens = [np.roll(STEM, number)[:length] for number, length in parts]
    return tuple(np.concatenate(tokens).tolist()), prompt


def batch_of(rows: Sequence[Row]) -> MicroBatch:
    read = [
        TokenizedRow(ids, np.where(np.arange(len(ids)) < prompt, IGNORE_INDEX, ids))
        for ids, prompt in ((np.array(tokens), prompt) for tokens, prompt in rows)
    ]
    tokens = [one.input_ids for one in read]
    return collate(
        read,
        examples=range(len(read)),
        owners=find_owners(tokens, range(len(read))),
        computed_tokens=0,
        pad_token_id=0,
    )


CASES = {
    "ragged": [row((0, 40), (n, length)) for n, length in ((1, 3), (2, 30), (3, 12), (4, 1))],
    "one-token suffixes": [row((0, 20), (n, 1), prompt=20) for n in range(1, 6)],
    "a prefix is a whole row": [row((0, 20), prompt=3), row((0, 20), (1, 9)), row((0, 45))],
    "identical rows": [row((0, 30), (1, 5))] * 3,
    "several levels": [
        row((0, 20), (a, 18), (b, 17), (c, 4), prompt=30)
        for a in (1, 2)
        for b in (3, 4)
        for c in (5, 6)
    ],
    "pairs": [row((n, 25 + n), (m, 8 * m), prompt=20) for n in (1, 2, 3) for m in (7, 8)],
    "too little in common": [row((0, 10), (n, 9)) for n in (1, 2, 3)],
    "nothing in common": [row((n, 7 * n)) for n in (5, 1, 3, 2)],
    "longer than a chunk": [row((0, 150), (n, 140), prompt=100) for n in (1, 2)],
    "short": [row((0, 3)), row((0, 2), (9, 2)), row((7, 2))],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_are_those_of_the_plain_code(model_type: str, case: str) -> None:
    model = build_peft_model(model_type, target_modules=EVERY_LINEAR)

    for is_checkpointing in (False, True):
        ours = FusedForward(model, is_checkpointing=is_checkpointing)
        assert_same(ours, ReferenceForward(model), batch_of(CASES[case]), rel=1e-5)


@pytest.mark.parametrize("case", ["several levels", "pairs", "longer than a chunk"])
def test_weights_that_are_computed_twice_are_the_same(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONGEST_BY_PRODUCTS", 0)
    monkeypatch.setattr(packing, "_RUN", 8)
    monkeypatch.setattr(packing, "_LARGEST_TABLE", 200)
    model = build_peft_model(target_modules=EVERY_LINEAR)

    assert_same(FusedForward(model), ReferenceForward(model), batch_of(CASES[case]), rel=1e-5)


@st.composite
def tries(draw: st.DrawFn) -> list[Row]:
    """Rows of which each begins as a part of one before it."""
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 8))):
        before = draw(st.sampled_from(rows))[0] if rows else ()
        kept = before[: draw(st.integers(0, len(before)))]
        new = draw(st.lists(st.integers(0, 3), min_size=0, max_size=40))
        tokens = (*kept, *new, 5, 6, 7)
        # What is learned after one token has no gradient in attention but rounding errors.
        rows.append((tokens, draw(st.integers(2, len(tokens) - 1))))
    return rows


MODEL = build_peft_model(target_modules=EVERY_LINEAR)


@settings(max_examples=30, deadline=None)
@given(tries())
def test_gradients_of_any_trie_are_those_of_the_plain_code(rows: list[Row]) -> None:
    """To a part of the largest of all: a few tokens leave nearly none to some of the weights."""
    batch = batch_of(rows)
    our_scores, ours = gradients(FusedForward(MODEL), batch)
    their_scores, theirs = gradients(ReferenceForward(MODEL), batch)

    largest = max(gradient.abs().max().item() for gradient in theirs)
    torch.testing.assert_close(our_scores, their_scores, rtol=1e-5, atol=1e-5)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5 * largest)


@given(tries())
def test_each_token_of_a_row_is_computed_once_for_all_that_share_it(rows: list[Row]) -> None:
    tokens = [np.array(ids) for ids, _ in rows]
    segments, places = find_segments(tokens)
    laid = np.concatenate([tokens[one.row][one.start : one.end] for one in segments])

    assert sorted(np.concatenate([one.tokens for one in segments])) == list(range(len(laid)))
    for ids, indices in zip(tokens, places, strict=True):
        assert laid[indices].tolist() == ids.tolist()
    for one, its in zip(tokens, places, strict=True):
        for other, others in zip(tokens, places, strict=True):
            same = min(len(one), len(other))
            shared = (
                same
                if (one[:same] == other[:same]).all()
                else np.argmin(one[:same] == other[:same])
            )
            assert (its[:shared] == others[:shared]).sum() >= shared - 15 * len(rows)
            assert not set(its[shared:]) & set(others[shared:])


def test_a_prompt_is_computed_once() -> None:
    segments, _ = find_segments([np.array(tokens) for tokens, _ in CASES["several levels"]])

    lengths = sorted(len(one.tokens) for one in segments)
    assert lengths == [4] * 8 + [17] * 4 + [18] * 2 + [20]


def summed_gradients(forward: FusedForward, pieces: Sequence[MicroBatch]) -> list[Tensor]:
    parameters = [one for one in forward.model.parameters() if one.requires_grad]
    total = sum(forward.log_probs(piece, KEY).log_probs_N.sum() for piece in pieces)
    assert isinstance(total, Tensor)
    return [total.detach(), *torch.autograd.grad(total, parameters)]


@pytest.mark.parametrize("case", CASES)
def test_dropout_does_not_depend_on_the_cut(case: str) -> None:
    """Although what is in two micro-batches is computed twice, and too little to share as well."""
    forward = FusedForward(build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3))
    batch = batch_of(CASES[case])
    rows = len(batch.lengths)

    whole = summed_gradients(forward, [batch])
    alone = summed_gradients(forward, [cut_rows(batch, i, i + 1) for i in range(rows)])

    for our, their in zip(whole, alone, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5 * their.abs().max().item())


def test_a_shared_token_has_one_mask() -> None:
    ours = build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3)
    theirs = build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3)
    batch = batch_of(CASES["several levels"])
    give_masks(theirs, batch, 0.3)

    assert_same(FusedForward(ours), ReferenceForward(theirs), batch, rel=1e-5)
    assert {one.example for one in pack(batch).drawn} == set(range(8))
    owners = [[(one.end, one.example) for one in row] for row in batch.owners]
    assert owners[:2] == [[(59, 0)], [(55, 0), (59, 1)]]


def test_dropout_masks_differ_between_steps() -> None:
    forward = FusedForward(build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3))
    batch = batch_of(CASES["ragged"])

    one, other = (forward.log_probs(batch, DropoutKey(1, step)).log_probs_N for step in (1, 2))

    assert not torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own compiler
def test_compiled_layers_compute_the_same() -> None:
    model = build_peft_model(target_modules=EVERY_LINEAR, dropout=0.3)
    compiled = compile_layer()

    for case in ("several levels", "pairs", "ragged"):
        ours = FusedForward(model, layer=compiled)
        # Fused operations round otherwise, with these masks a little above 1e-5.
        assert_same(ours, FusedForward(model), batch_of(CASES[case]), rel=3e-5)
