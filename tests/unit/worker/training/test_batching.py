from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import RowsInMemory
from worker.training.data.batching import collate, cut_by_length, shuffled_batches
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


def test_groups_are_of_like_length_and_within_the_limit() -> None:
    lengths = np.array([3, 90, 5, 4, 60, 8, 30, 31])

    groups = [g.tolist() for g in cut_by_length(np.arange(8), lengths, micro_batch_tokens=64)]

    assert groups == [[1], [4], [6, 7], [0, 3, 2, 5]]


def cost(groups: Iterable[Sequence[int]]) -> int:
    return sum(64 + len(group) * max(group) for group in groups)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_no_other_cut_takes_less_time(rows: list[int]) -> None:
    lengths, limit = np.array(rows), 256
    groups = [
        lengths[g].tolist()
        for g in cut_by_length(np.arange(len(rows)), lengths, micro_batch_tokens=limit)
    ]

    assert sorted(length for group in groups for length in group) == sorted(rows)
    assert all(len(group) == 1 or len(group) * max(group) <= limit for group in groups)
    in_order = sorted(rows)
    for places in range(1 << (len(rows) - 1)):  # where to cut
        ends = [i for i in range(1, len(rows)) if places >> (i - 1) & 1] + [len(rows)]
        cut = [in_order[start:end] for start, end in pairwise([0, *ends])]
        if all(len(group) == 1 or len(group) * max(group) <= limit for group in cut):
            assert cost(groups) <= cost(cut)


def test_only_the_examples_of_the_step_are_cut() -> None:
    lengths = np.array([3, 90, 5, 4])

    groups = cut_by_length(np.array([3, 0]), lengths, micro_batch_tokens=64)
    assert [g.tolist() for g in groups] == [[0, 3]]


def test_padding_is_at_the_end_and_never_learned() -> None:
    rows = [
        TokenizedRow(np.array([1, 2, 3]), np.array([IGNORE_INDEX, 2, 3])),
        TokenizedRow(np.array([4]), np.array([IGNORE_INDEX])),
    ]

    batch = collate(RowsInMemory(rows), np.array([1, 0]), pad_token_id=2)

    assert batch.input_ids_BL.tolist() == [[4, 2, 2], [1, 2, 3]]
    assert batch.labels_BL.tolist() == [[IGNORE_INDEX] * 3, [IGNORE_INDEX, 2, 3]]
    assert (batch.examples, batch.lengths) == ([1, 0], [1, 3])


def test_each_target_knows_its_row() -> None:
    rows = [
        TokenizedRow(np.array([1, 2, 3]), np.array([IGNORE_INDEX, 2, 3])),
        TokenizedRow(np.array([4, 5]), np.array([4, IGNORE_INDEX])),
        TokenizedRow(np.array([6, 7]), np.array([IGNORE_INDEX, 7])),
    ]

    batch = collate(RowsInMemory(rows), np.array([2, 1, 0]), pad_token_id=2)

    assert batch.rows_of_targets.tolist() == [0, 2, 2]
