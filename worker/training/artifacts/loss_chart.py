"""`loss.svg`: the loss of a job as a picture, and how all our charts look.

Importing this sets the look of every chart of the library in this process.
"""

import decimal
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree as ET

import leather
import numpy as np
from leather import theme

from worker.training.artifacts.loss_log import Losses

Point = tuple[float, float]
"""Step and loss."""

BLUE, RED, GREY = "#2563eb", "#dc2626", "#9ca3af"
INK = "#111827"
_PALE, _PALE_BLUE = "#e5e7eb", "rgba(37, 99, 235, 0.3)"
_FONT, _FONT_SIZE, _LETTER_WIDTH = "sans-serif", 12, 7
_DIGITS = 7
"""Significant digits of a coordinate. The library would write 28."""
_MAX_POINTS = 400
_SMOOTHING = 0.8
"""Weight of the past in the running mean that is drawn over the single steps."""

theme.background_color = "white"
theme.margin = 0.03
theme.tick_color = _PALE
theme.zero_color = theme.title_color = theme.axis_title_color = INK
theme.label_color = theme.legend_color = INK
theme.title_font_family = theme.axis_title_font_family = _FONT
theme.tick_font_family = theme.legend_font_family = _FONT
theme.axis_title_font_size = theme.tick_font_size = theme.legend_font_size = _FONT_SIZE
theme.tick_font_char_width = theme.legend_font_char_width = _LETTER_WIDTH
theme.title_gap = theme.legend_gap = 8


def render(chart: leather.Chart, *, height: int) -> str:
    """The chart as SVG, 800 pixels wide. The same chart always gives the same text."""
    with decimal.localcontext(prec=_DIGITS):
        return str(chart.to_svg(width=800, height=height)) + "\n"


class _DottedLine(leather.Line):
    """A dashed line with a dot at every point."""

    def __init__(self, colour: str) -> None:
        super().__init__(stroke_color=colour, width=1, stroke_dasharray="4 3")
        self._dots = leather.Dots(fill_color=colour, radius=3.5)

    def to_svg(self, *arguments: Any, **more: Any) -> ET.Element:
        group = super().to_svg(*arguments, **more)
        group.extend(self._dots.to_svg(*arguments, **more))
        return group


def draw_losses(losses: Losses, *, title: str) -> str:
    """An SVG picture of training and validation loss over the optimizer steps."""
    train, valid = _thin_out(losses.train), losses.valid
    top_loss = 1.05 * max(loss for _, loss in [*train, *valid]) or 1.0
    chart = leather.Chart(title)
    chart.add_x_scale(0, len(losses.train))
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


def _thin_out(losses: Sequence[float]) -> list[Point]:
    """The loss of each step. Where there are many, neighbouring steps are averaged."""
    width = math.ceil(len(losses) / _MAX_POINTS)
    starts = np.arange(0, len(losses), width)
    ends = np.minimum(starts + width, len(losses))
    means = np.add.reduceat(np.asarray(losses), starts) / (ends - starts)
    return list(zip(ends.tolist(), means.tolist(), strict=True))


def _smoothed(points: Iterable[Point]) -> Iterator[Point]:
    """The running mean, corrected for its start, as Adam corrects its moments."""
    mean, weight = 0.0, 0.0
    for step, loss in points:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        yield step, mean / weight
