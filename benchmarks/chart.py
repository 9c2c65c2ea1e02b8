"""A chart of bars with their spread."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import leather

from worker.training.artifacts.loss_log import BLUE, GREY, INK, render

_ROW, _REST = 44, 56
"""Height of a bar with the space around it, and of all else, in pixels."""
_ROOM_FOR_FIGURES = 1.15
"""Length of the axis, as a multiple of the longest bar."""

_FIGURE = {
    "fill": INK,
    "font-family": "sans-serif",
    "font-size": "12",
    "stroke": "white",  # around the letters, so that no line crosses them
    "stroke-width": "6",
    "paint-order": "stroke",
}


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    lowest: float
    highest: float
    is_ours: bool = False


class _BarsWithSpread(leather.Bars):
    """Bars with a line from the lowest to the highest value, and the value behind it."""

    def to_svg(self, width: int, height: int, *more: Any) -> ET.Element:
        group = super().to_svg(width, height, *more)
        x_scale, y_scale, series, _ = more
        for datum in series.data():
            bar: Bar = datum.row
            y = str(y_scale.project(bar.label, height, 0))
            low, high = (x_scale.project(x, 0, width) for x in (bar.lowest, bar.highest))
            spread = {"x1": str(low), "x2": str(high), "y1": y, "y2": y, "stroke": INK}
            ET.SubElement(group, "line", spread)
            figure = {"x": str(high + 8), "y": y, "dy": "0.32em", **_FIGURE}
            ET.SubElement(group, "text", figure).text = f"{bar.value:,.0f}"
        return group


def draw_bars(bars: Sequence[Bar], *, title: str) -> str:
    """An SVG picture; a line across each bar shows its spread."""
    chart = leather.Chart(title)
    series = leather.Series(
        list(reversed(bars)), x=lambda bar, _: bar.value, y=lambda bar, _: bar.label
    )
    chart.add_x_scale(0, _ROOM_FOR_FIGURES * max((bar.highest for bar in bars), default=1.0))
    chart.add_x_axis(ticks=[0], tick_formatter=lambda *_: "")
    chart.add_series(series, _BarsWithSpread(lambda datum: BLUE if datum.row.is_ours else GREY))
    return render(chart, height=_REST + _ROW * len(bars))
