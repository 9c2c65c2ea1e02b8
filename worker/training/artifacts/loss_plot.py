"""`loss.svg`: the loss of a job as a picture."""

import math
from collections.abc import Iterable, Iterator, Sized
from decimal import Decimal
from typing import Any, Protocol
from xml.etree import ElementTree as ET

import leather

from app.core.job.loss_log import StepMetrics
from worker.training.artifacts.chart import BLUE, RED, render

Point = tuple[float, float]
"""Step and loss."""

_PALE_BLUE = "rgba(37, 99, 235, 0.3)"
_MAX_POINTS = 400
_SMOOTHING = 0.8
"""Weight of the past in the running mean that is drawn over the single steps."""


class _DottedLine(leather.Line):
    """A dashed line with a dot at every point."""

    def __init__(self, colour: str) -> None:
        super().__init__(stroke_color=colour, width=1, stroke_dasharray="4 3")
        self._dots = leather.Dots(fill_color=colour, radius=3.5)

    def to_svg(self, *arguments: Any, **more: Any) -> ET.Element:
        group = super().to_svg(*arguments, **more)
        group.extend(self._dots.to_svg(*arguments, **more))
        return group


class LossRows(Sized, Protocol):
    def __iter__(self) -> Iterator[StepMetrics]: ...


def draw_losses(rows: LossRows, *, title: str) -> str:
    """An SVG picture of training and validation loss over the optimizer steps."""
    train, valid = _read(rows)
    top_loss = 1.05 * max(loss for _, loss in [*train, *valid]) or 1.0
    chart = leather.Chart(title)
    chart.add_x_scale(0, len(rows))
    chart.add_y_scale(0, top_loss)
    chart.add_x_axis(name="optimizer step", tick_formatter=_format_step)
    chart.add_y_axis(name="loss, nats per token", tick_formatter=_format_loss)
    chart.add_line(train, name="training, each step", stroke_color=_PALE_BLUE, width=1)
    chart.add_line(list(_smoothed(train)), name="training, running mean", stroke_color=BLUE)
    if valid:
        chart.add_series(leather.Series(valid, name="validation"), _DottedLine(RED))
    return render(chart, height=450)


def _format_step(step: Decimal, _index: int, _count: int) -> str:
    return "" if step % 1 else f"{int(step):,}"


def _format_loss(loss: Decimal, _index: int, _count: int) -> str:
    return f"{float(loss):g}"


def _read(rows: LossRows) -> tuple[list[Point], list[Point]]:
    """Training and validation losses; neighbouring steps are averaged where there are many."""
    width = math.ceil(len(rows) / _MAX_POINTS)
    train: list[Point] = []
    valid: list[Point] = []
    bucket: list[StepMetrics] = []
    for row in rows:
        bucket.append(row)
        if len(bucket) == width or row.step == len(rows):
            train.append((row.step, sum(each.train_loss for each in bucket) / len(bucket)))
            bucket.clear()
        if row.valid_loss is not None:
            valid.append((row.step, row.valid_loss))
    return train, valid


def _smoothed(points: Iterable[Point]) -> Iterator[Point]:
    """The running mean, corrected for its start, as Adam corrects its moments."""
    mean, weight = 0.0, 0.0
    for step, loss in points:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        yield step, mean / weight
