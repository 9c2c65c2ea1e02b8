from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import RowsInMemory
from worker.training.data.batching import (
    MicroBatch,
    cut_rows,
    evaluated_together,
    read_micro_batches,
    shuffled_batches,
)
from worker.training.data.dataset import IGNORE_INDEX, TokenizedRow


def test_an_epoch_reads_every_example_once_and_its_last_batch_is_smaller() -> None:
    batches = list(islice(shuffled_batches(10, 4, seed=1), 3))

    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    def orders(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in islice(shuffled_batches(20, 20, seed=seed), 3)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    first, second, third = orders(1)
    assert first != second != third


@pytest.mark.parametrize("examples", [8, 10])
def test_a_job_that_goes_on_reads_what_it_would_have_read(examples: int) -> None:
    def batches(after_step: int) -> list[list[int]]:
        all_ = shuffled_batches(examples, 4, seed=1, after_step=after_step)
        return [batch.tolist() for batch in islice(all_, 12 - after_step)]

    for step in range(12):
        assert batches(step) == batches(0)[step:]


def rows_of(*lengths: int) -> list[np.ndarray]:
    """Rows that have nothing in common."""
    return [np.full(length, row) for row, length in enumerate(lengths)]


def test_padded_rows_are_cut_by_length_and_within_the_limit() -> None:
    rows = rows_of(3, 90, 5, 4, 60, 8, 30, 31)

    pieces = cut_rows(rows, rows_per_example=1, micro_batch_tokens=64, is_padded=True)

    assert [piece.rows for piece in pieces] == [[1], [4], [6, 7], [0, 3, 2, 5]][::-1]
    assert [piece.tokens for piece in pieces] == [32, 62, 60, 90]


def cost(groups: Iterable[Sequence[int]]) -> int:
    return sum(64 + len(group) * max(group) for group in groups)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_no_other_cut_takes_less_time(lengths: list[int]) -> None:
    limit = 256
    pieces = cut_rows(
        rows_of(*lengths), rows_per_example=1, micro_batch_tokens=limit, is_padded=True
    )
    groups = [[lengths[row] for row in piece.rows] for piece in pieces]

    assert sorted(length for group in groups for length in group) == sorted(lengths)
    assert all(len(group) == 1 or len(group) * max(group) <= limit for group in groups)
    in_order = sorted(lengths)
    for places in range(1 << (len(lengths) - 1)):  # where to cut
        ends = [i for i in range(1, len(lengths)) if places >> (i - 1) & 1] + [len(lengths)]
        cut = [in_order[start:end] for start, end in pairwise([0, *ends])]
        if all(len(group) == 1 or len(group) * max(group) <= limit for group in cut):
            assert cost(groups) <= cost(cut)


def test_rows_that_begin_alike_are_together_and_what_they_share_counts_once() -> None:
    one, other = np.arange(40), np.arange(100, 140)
    rows = [np.append(beginning, [200 + i] * 8) for i in range(2) for beginning in (one, other)]

    pieces = cut_rows(rows, rows_per_example=1, micro_batch_tokens=60, is_padded=False)

    assert [(piece.rows, piece.tokens) for piece in pieces] == [([0, 2], 56), ([1, 3], 56)]


def test_a_row_longer_than_the_limit_is_alone() -> None:
    pieces = cut_rows(
        rows_of(5, 100, 6), rows_per_example=1, micro_batch_tokens=64, is_padded=False
    )

    assert [piece.rows for piece in pieces] == [[0], [1], [2]]


def test_an_evaluation_reads_every_example_once_and_like_lengths_together() -> None:
    lengths = np.arange(300)[::-1]

    windows = list(evaluated_together(lengths, 1))

    assert [len(window) for window in windows] == [128, 128, 44]
    assert np.concatenate(windows).tolist() == list(range(300))[::-1]


def test_padding_is_at_the_end_and_never_learned() -> None:
    rows = [
        TokenizedRow(np.array([1, 2, 3]), np.array([IGNORE_INDEX, 2, 3])),
        TokenizedRow(np.array([4]), np.array([IGNORE_INDEX])),
    ]

    (batch,) = read(rows, [1, 0])

    assert batch.input_ids_BL.tolist() == [[1, 2, 3], [4, 2, 2]]
    assert batch.labels_BL.tolist() == [[IGNORE_INDEX, 2, 3], [IGNORE_INDEX] * 3]
    assert (batch.examples, batch.lengths) == ([0, 1], [3, 1])
    assert [row.tolist() for row in batch.rows] == [[1, 2, 3], [4]]


def read(rows: list[TokenizedRow], examples: list[int]) -> list[MicroBatch]:
    data = RowsInMemory(rows)
    return list(
        read_micro_batches(
            data,
            np.array(examples),
            rows_per_example=1,
            micro_batch_tokens=64,
            is_padded=False,
            pad_token_id=2,
        )
    )


def test_each_target_knows_its_row() -> None:
    rows = [
        TokenizedRow(np.array([1, 2, 3]), np.array([IGNORE_INDEX, 2, 3])),
        TokenizedRow(np.array([4, 5]), np.array([4, IGNORE_INDEX])),
        TokenizedRow(np.array([6, 7]), np.array([IGNORE_INDEX, 7])),
    ]

    (batch,) = read(rows, [2, 1, 0])

    assert batch.examples == [0, 1, 2]
    assert batch.rows_of_targets.tolist() == [0, 0, 2]


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("limit", [1, 40, 64, 1000])
def test_both_rows_of_a_pair_share_a_micro_batch(*, limit: int, is_padded: bool) -> None:
    chance = np.random.default_rng(0)
    prompts = [chance.integers(0, 9, size) for size in chance.integers(1, 30, 5)]
    rows = [
        np.concatenate((prompt, chance.integers(0, 9, chance.integers(1, 20))))
        for prompt in prompts
        for _ in range(2)
    ]

    pieces = cut_rows(rows, rows_per_example=2, micro_batch_tokens=limit, is_padded=is_padded)

    for piece in pieces:
        assert piece.rows[1::2] == [row + 1 for row in piece.rows[::2]]
        assert piece.tokens <= limit or len(piece.rows) == 2
    taken = sorted(row // 2 for piece in pieces for row in piece.rows[::2])
    assert taken == list(range(5))
