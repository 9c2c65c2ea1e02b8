"""A part of what `make soak` does at length: see `tests.soak.run`."""

from pathlib import Path

import pytest

from tests.soak.run import soak
from tests.soak.trends import (
    DESCRIPTORS,
    LOG,
    MEMORY,
    MIN_WINDOWS,
    WINDOW_S,
    Point,
    judge_rest,
    judge_trends,
    slope_per_hour,
)
from tests.tiny import install_tiny_model

MINUTES = 0.2
"""Too short for a slope, but a descriptor or thread of each request would be left in the end."""

MEASURED_MINUTES = 10


def test_nothing_is_left_of_a_load(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    install_tiny_model(data_dir, source=tmp_path / "our-tiny")

    outcome = soak(data_dir, f"sqlite:///{data_dir / 'tunery.db'}", minutes=MINUTES, seed=7)

    assert outcome.problems == []
    assert [row for row in outcome.rows if not row.is_ok] == []
    assert outcome.statuses[200] > 50


def busy(leak_per_hour: float) -> list[Point]:
    """Ten minutes of a figure that each request raises for a moment, and that may leak as well."""
    return [
        (float(second), 20 + 7 * (second % 3) + leak_per_hour * second / 3600)
        for second in range(60 * MEASURED_MINUTES)
    ]


@pytest.mark.parametrize("kind", [DESCRIPTORS, MEMORY])
def test_a_leak_is_told_from_a_load(kind: str) -> None:
    steady, leaking = judge_trends(
        {("api", kind): busy(0), ("worker", kind): busy(120)}, minutes=MEASURED_MINUTES
    )

    assert (steady.measured, steady.is_ok) == (0, True)
    assert leaking.measured == pytest.approx(120, rel=0.05)
    assert not leaking.is_ok


def test_what_fills_up_at_first_is_no_leak() -> None:
    filling = [(second, value + min(second, 120)) for second, value in busy(0)]

    (row,) = judge_trends({("sampler", MEMORY): filling}, minutes=MEASURED_MINUTES)

    assert (row.start, row.measured, row.is_ok) == (140, 0, True)


def test_the_log_may_not_even_be_large_for_a_moment() -> None:
    points = [(float(second), 100.0 if second == 300 else 4.0) for second in range(600)]

    slope, highest = judge_trends({("database", LOG): points}, minutes=MEASURED_MINUTES)

    assert (slope.measured, slope.is_ok) == (0, True)
    assert (highest.measured, highest.is_ok) == (100, False)


def test_a_short_time_has_no_slope() -> None:
    points = [point for point in busy(120) if point[0] < (MIN_WINDOWS - 1) * WINDOW_S]

    assert judge_trends({("api", DESCRIPTORS): points}, minutes=0) == []


def test_an_outlier_does_not_hide_a_slope() -> None:
    points = [(float(hour), 10.0 * hour) for hour in range(0, 36_000, 3600)]

    assert slope_per_hour([*points, (36_000.0, 0.0)]) == pytest.approx(36_000)


def test_what_is_left_after_a_load_is_noticed() -> None:
    before = {("api", "threads"): 12.0, ("database", "rows"): 1.0}

    threads, rows = judge_rest(before, {("api", "threads"): 9.0, ("database", "rows"): 2.0})

    assert threads.is_ok
    assert not rows.is_ok
