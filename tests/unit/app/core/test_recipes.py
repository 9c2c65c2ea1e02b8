"""What the recipe `auto` chooses, by size."""

import pytest

from app.core.job import recipes
from app.core.job.lora_shape import LoraShape
from app.core.job.recipes import JobSize

REFERENCE = LoraShape()
WIDE = LoraShape(rank=16, alpha=32)


def size(parameters: int | None = 135_000_000, *, rows: int = 100, tokens: int = 5000) -> JobSize:
    return JobSize(parameters=parameters, rows=rows, bytes=4 * tokens)


def rate(of: JobSize, lora: LoraShape = WIDE, ratio: float | None = None) -> float:
    return recipes.choose_learning_rate(of, lora, loraplus_lr_ratio=ratio)


def test_a_larger_base_model_learns_at_a_lower_rate() -> None:
    parameters = (135e6, 1.5e9, 7e9, 70e9)
    rates = [rate(size(int(number))) for number in parameters]

    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[2] > rates[3]


def test_an_unknown_base_model_is_taken_for_a_large_one() -> None:
    assert rate(size(None)) == rate(size(7_000_000_000))


def test_the_rate_fits_the_adapter_that_it_trains() -> None:
    usual = rate(size())

    assert rate(size(), REFERENCE) == 2 * usual
    assert rate(size(), LoraShape(rank=64, alpha=32)) == usual
    assert rate(size(), LoraShape(rank=64, alpha=4, use_rslora=True)) == usual
    assert rate(size(), LoraShape(rank=64, alpha=64)) == usual / 2
    assert rate(size(), WIDE, ratio=16) == pytest.approx(usual / 16, rel=0.02)
    assert rate(size(), LoraShape(alpha=0.1)) == recipes.MAX_LEARNING_RATE


def test_a_small_file_is_repeated_more_often_and_a_large_one_less_often() -> None:
    epochs = {
        rows: recipes.choose_epochs(size(rows=rows), batch_size=4)
        for rows in (0, 1, 16, 32, 64, 100, 9_999, 10_000)
    }

    assert epochs == {0: 10, 1: 10, 16: 10, 32: 6, 64: 3, 100: 3, 9_999: 3, 10_000: 1}
    assert recipes.choose_epochs(size(rows=100), batch_size=50) == 10


def test_the_rank_grows_with_the_data() -> None:
    assert recipes.choose_rank(size(tokens=100_000)) < recipes.choose_rank(size(tokens=10**8))
