"""`loss.svg`: the loss of a job as a picture, drawn without a plotting library."""

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol
from xml.sax.saxutils import escape

from app.core.loss_log import StepMetrics

Point = tuple[float, float]
"""Step and loss."""

_WIDTH, _HEIGHT = 800, 450
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
"""Margins, in pixels."""
_TRAIN_COLOUR, _VALID_COLOUR, _GREY = "#2563eb", "#dc2626", "#6b7280"
_MAX_POINTS = 400
_SMOOTHING = 0.8
"""Weight of the past in the running mean that is drawn over the single steps."""


class LossRows(Sized, Protocol):
    def __iter__(self) -> Iterator[StepMetrics]: ...


def draw_losses(rows: LossRows, *, title: str) -> str:
    """An SVG picture of training and validation loss over the optimizer steps."""
    train, valid = _read(rows)
    axes = _Axes.around([*train, *valid])
    body = [
        *axes.draw(),
        _text(_WIDTH / 2, 28, title, size=16),
        _line(axes, train, f'stroke="{_TRAIN_COLOUR}" stroke-opacity="0.3"'),
        _line(axes, list(_smoothed(train)), f'stroke="{_TRAIN_COLOUR}" stroke-width="2"'),
        _line(axes, valid, f'stroke="{_VALID_COLOUR}" stroke-dasharray="4 3"'),
        *(_dot(axes, point) for point in valid),
        *_legend(has_validation=bool(valid)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


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


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where a step and a loss are in the picture. Both axes begin at zero."""

    last_step: float
    top_loss: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> "_Axes":
        top = max(loss for _, loss in points)
        return cls(max(step for step, _ in points), 1.05 * top or 1.0)

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / self.last_step

    def y(self, loss: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / self.top_loss

    def draw(self) -> Iterator[str]:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        for loss in _ticks(self.top_loss):
            y = self.y(loss)
            yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e5e7eb"/>'
            yield _text(_LEFT - 8, y + 4, f"{loss:g}", anchor="end")
        for step in _ticks(self.last_step, whole=True):
            yield _text(self.x(step), bottom + 18, f"{step:,.0f}")
        yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="{_GREY}"/>'
        yield _text((_LEFT + right) / 2, _HEIGHT - 16, "optimizer step")
        y = (_TOP + bottom) / 2
        yield (f'<g transform="rotate(-90 20 {y:.1f})">{_text(20, y, "loss, nats per token")}</g>')


def _ticks(top: float, *, whole: bool = False) -> list[float]:
    """Round numbers from zero to `top`, about six."""
    rough = top / 6
    magnitude = 10.0 ** math.floor(math.log10(rough))
    spacing = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    if whole:
        spacing = max(1.0, spacing)
    return [i * spacing for i in range(int(top / spacing) + 1)]


def _line(axes: _Axes, points: Sequence[Point], style: str) -> str:
    where = " ".join(f"{axes.x(step):.1f},{axes.y(loss):.1f}" for step, loss in points)
    return f'<polyline points="{where}" fill="none" {style}/>'


def _dot(axes: _Axes, point: Point) -> str:
    step, loss = point
    return (
        f'<circle cx="{axes.x(step):.1f}" cy="{axes.y(loss):.1f}" r="3.5" fill="{_VALID_COLOUR}">'
        f"<title>step {step:,.0f}: {loss:.4f}</title></circle>"
    )


def _legend(*, has_validation: bool) -> Iterator[str]:
    names = [("training", _TRAIN_COLOUR)]
    if has_validation:
        names.append(("validation", _VALID_COLOUR))
    for i, (name, colour) in enumerate(names):
        x, y = _WIDTH - _RIGHT - 110, _TOP + 10 + 20 * i
        yield f'<path d="M{x} {y}h24" stroke="{colour}" stroke-width="2"/>'
        yield _text(x + 30, y + 4, name, anchor="start")


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#111827">{escape(text)}</text>'
    )
