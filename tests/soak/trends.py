"""What a service may take more of while it is used, and how that is found out."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Metric = tuple[str, str]
"""Whose figure it is, such as `api`, and what is measured, such as `threads`."""

Sample = Mapping[Metric, float]
Point = tuple[float, float]
"""Time in seconds, and the value at that time."""

MEMORY, DESCRIPTORS, THREADS = "memory (MiB)", "descriptors", "threads"
LOG = "write-ahead log (MiB)"

WINDOW_S = 30.0
"""Of each window of this length, only the lowest value counts. A request that is being answered
raises a value for a moment. A leak also raises the lowest value."""

WARM_UP = 0.25
"""Fraction of the time that is left out of the trends, because caches and pools fill up then."""

MIN_WINDOWS = 5
"""With fewer windows, a slope says nothing, and none is computed."""

PER_HOUR = {
    MEMORY: 32.0,
    DESCRIPTORS: 12.0,
    THREADS: 12.0,
    LOG: 4.0,
}
"""Highest slope of each figure, per hour. The clients send about 120,000 requests an hour, so a
descriptor or thread that one of 10,000 requests leaves behind is noticed, and so are 300 bytes of
memory of each request. Memory grows by 7 to 15 MiB in the first hour while the database's caches
fill. The API has more threads while other programs keep the machine busy."""

HIGHEST = {LOG: 8.0}
"""Highest value of a figure at any time. SQLite empties its log once it has 1,000 pages of 4 KiB,
but only if no reader needs it. Twice as much is allowed."""

AT_REST = {DESCRIPTORS: 10.0}
"""How much more of each figure there may be after the load than before it. The default is 0. A
process keeps up to five connections to the database, with two descriptors each on SQLite."""


@dataclass(frozen=True, slots=True)
class Row:
    """A metric that is compared with a limit."""

    metric: Metric
    start: float
    end: float
    measured: float
    """What is compared with the limit."""
    limit: float
    unit: str
    """What is measured: a slope per hour, the highest value, or the difference at rest."""

    @property
    def is_ok(self) -> bool:
        return self.measured <= self.limit


def judge_trends(series: Mapping[Metric, Sequence[Point]], *, minutes: float) -> list[Row]:
    """Compare the slope and the highest value of each metric with their limits.

    Args:
        series: every value of each metric.
        minutes: how long was measured. The first part of it is left out.
    """
    rows: list[Row] = []
    for metric, all_points in series.items():
        points = [point for point in all_points if point[0] >= WARM_UP * minutes * 60]
        _, kind = metric
        start, end = points[0][1], points[-1][1]
        lowest = _lowest_of_windows(points)
        if kind in PER_HOUR and len(lowest) >= MIN_WINDOWS:
            slope = slope_per_hour(lowest)
            rows.append(Row(metric, start, end, slope, PER_HOUR[kind], "per hour"))
        if kind in HIGHEST:
            highest = max(value for _, value in points)
            rows.append(Row(metric, start, end, highest, HIGHEST[kind], "highest"))
    return rows


def judge_rest(before: Sample, after: Sample) -> list[Row]:
    """Compare a service that is at rest with what it was before the load."""
    return [
        Row(
            metric, start, after[metric], after[metric] - start, AT_REST.get(metric[1], 0.0), "more"
        )
        for metric, start in before.items()
        if metric in after
    ]


def slope_per_hour(points: Sequence[Point]) -> float:
    """The median of the slopes between any two points, by Theil and Sen: outliers do not matter."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in itertools.combinations(points, 2)
    ]
    return 3600 * statistics.median(slopes)


def _lowest_of_windows(points: Sequence[Point]) -> list[Point]:
    windows = itertools.groupby(points, key=lambda point: point[0] // WINDOW_S)
    return [(number * WINDOW_S, min(value for _, value in group)) for number, group in windows]
