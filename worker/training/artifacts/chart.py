"""How our charts look: those of a job's loss and those of the benchmarks.

Importing this sets the look of every chart of the library in this process.
"""

import decimal

import leather
from leather import theme

BLUE, RED, GREY = "#2563eb", "#dc2626", "#9ca3af"
INK = "#111827"
_PALE = "#e5e7eb"
_FONT, _FONT_SIZE, _LETTER_WIDTH = "sans-serif", 12, 7
_DIGITS = 7
"""Significant digits of a coordinate; the library would write 28."""

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
