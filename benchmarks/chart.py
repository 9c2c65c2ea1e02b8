"""A chart of bars with their spread, drawn without a plotting library."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT, _TOP = 800, 240, 90, 56
_ROW, _THICKNESS = 44, 24
_OURS, _OTHERS, _INK = "#2563eb", "#9ca3af", "#111827"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    lowest: float
    highest: float
    is_ours: bool = False


def draw_bars(bars: Sequence[Bar], *, title: str) -> str:
    """An SVG picture; the longest bar fills it, and a line across each shows its spread."""
    top = max((bar.highest for bar in bars), default=1.0)
    height = _TOP + _ROW * len(bars) + 16
    body = [_text(_WIDTH / 2, 30, title, anchor="middle", size=17)]
    for number, bar in enumerate(bars):
        body += _draw(bar, _TOP + _ROW * number, (_WIDTH - _LEFT - _RIGHT) / top)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _draw(bar: Bar, y: float, scale: float) -> list[str]:
    middle, right = y + _THICKNESS / 2, _LEFT + scale * bar.highest
    low, high = (_LEFT + scale * value for value in (bar.lowest, bar.highest))
    colour = _OURS if bar.is_ours else _OTHERS
    return [
        _text(_LEFT - 10, middle + 4, bar.label, anchor="end", size=13),
        _box(_LEFT, y, scale * bar.value, colour),
        f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{_INK}" stroke-width="1.5"/>',
        _text(right + 8, middle + 4, f"{bar.value:,.0f}", anchor="start", size=13),
    ]


def _box(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{_THICKNESS}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str, size: int) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="{_INK}">{escape(text)}</text>'
    )
