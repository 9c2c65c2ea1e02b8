"""The loss log of a job while it grows, and its chart `loss.svg`.

A job may take a million steps, and each checkpoint holds the log so far. So the rows are in files,
memory holds a few numbers per step, and no row is parsed or formatted a second time.

Importing this module sets the look of every chart of `leather` in this process.
"""

import decimal
import math
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree as ET

import leather
import numpy as np
from leather import theme

from app.core.job.artifacts import METRICS_CSV_NAME, METRICS_JSON_NAME
from app.core.job.loss_log import StepMetrics, csv_header, csv_line, json_line

_ROWS_PER_WRITE = 256


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of a job so far, as the chart shows them."""

    train: "array[float]" = field(default_factory=lambda: array("d"))
    """Training loss of each step, from step 1."""
    valid: list[tuple[int, float]] = field(default_factory=list)
    """Step and loss of each evaluation. Step 0 is the model before training."""
    reward_accuracy: "array[float]" = field(default_factory=lambda: array("d"))
    """Reward accuracy of each step in preference tuning. Empty for supervised tuning."""

    def late_share(self) -> float:
        """Fraction of the whole fall of the validation loss that came at the end of the job.

        The end is the time since the last evaluation in the first two thirds of the steps. The
        fraction is 0 if that was in the first half of the steps, or if the loss has not fallen.
        """
        if not self.valid or self.valid[0][0] != 0:
            return 0.0
        base_loss, (last_step, last_loss) = self.valid[0][1], self.valid[-1]
        *_, (step, loss) = (row for row in self.valid if 3 * row[0] <= 2 * last_step)
        if 2 * step < last_step or last_loss >= base_loss:
            return 0.0
        return (loss - last_loss) / (base_loss - last_loss)


class LossLog:
    """One row per optimizer step, in their order, after that of step 0 if there is one.

    Attributes:
        losses: losses of all rows.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        """Start an empty log in `path`, or continue the log of `length` steps that is there.

        The same log as CSV and as JSON grows beside it.

        Raises:
            RuntimeError: the file does not have exactly the rows of steps 1 to `length`.
        """
        self.losses = Losses()
        self._path = path
        self._csv, self._json = path.with_name(METRICS_CSV_NAME), path.with_name(METRICS_JSON_NAME)
        self._starts = array("q")
        self._first_step = 1
        self._size = 0
        self._unwritten: list[StepMetrics] = []
        if length == 0:
            path.write_bytes(b"")
        self._csv.write_text("", encoding="utf-8")
        self._json.write_bytes(b"")
        if not self._read_all() or len(self) != length:
            raise RuntimeError(f"{path.name} is not the loss log of steps 1 to {length}.")

    def __len__(self) -> int:
        """Number of steps taken. Step 0 does not count."""
        return len(self.losses.train)

    def append(self, row: StepMetrics) -> None:
        line = row.model_dump_json() + "\n"
        with self._path.open("a", encoding="utf-8") as log:
            log.write(line)
        self._note(row, len(line))

    def copy_tables(self, directory: Path) -> None:
        """Put the log so far, as CSV and as JSON, into `directory`."""
        self._write_tables()
        for table in (self._csv, self._json):
            shutil.copyfile(table, directory / table.name)

    def sample(self, rows: int) -> list[StepMetrics]:
        """About `rows` rows, evenly spread, with the last one and step 0 among them.

        If there are rows with a validation loss, the sample has only those.
        """
        steps = [step for step, _ in self.losses.valid] or range(1, len(self) + 1)
        stride = max(1, len(steps) // rows)
        sampled = list(reversed(steps[::-stride]))
        if steps[0] == 0 != sampled[0]:
            sampled.insert(0, 0)
        with self._path.open("rb") as lines:
            return [self._read(lines, step) for step in sampled]

    def _read(self, lines: BinaryIO, step: int) -> StepMetrics:
        lines.seek(self._starts[step - self._first_step])
        return StepMetrics.model_validate_json(lines.readline())

    def _read_all(self) -> bool:
        """Read the rows that are there. Returns whether they are whole and in order."""
        with self._path.open("rb") as lines:
            for line in lines:
                row = StepMetrics.model_validate_json(line)
                # A last line without its end would swallow the row that is appended to it.
                is_next = row.step == len(self) + 1 or (row.step == 0 and not self._starts)
                if not is_next or not line.endswith(b"\n"):
                    return False
                self._note(row, len(line))
        return True

    def _note(self, row: StepMetrics, size: int) -> None:
        if not self._starts:
            self._first_step = row.step
            self._csv.write_text(csv_header(row), encoding="utf-8")
        self._starts.append(self._size)
        self._size += size
        if row.train_loss is not None:
            self.losses.train.append(row.train_loss)
        if row.train_rewards is not None:
            self.losses.reward_accuracy.append(row.train_rewards.accuracy)
        if row.valid_loss is not None:
            self.losses.valid.append((row.step, row.valid_loss))
        self._unwritten.append(row)
        if len(self._unwritten) == _ROWS_PER_WRITE:
            self._write_tables()

    def _write_tables(self) -> None:
        for table, format_row in ((self._csv, csv_line), (self._json, json_line)):
            with table.open("a", encoding="utf-8") as file:
                file.writelines(map(format_row, self._unwritten))
        self._unwritten.clear()


Point = tuple[float, float]
"""Step and loss."""

BLUE, RED, GREY, GREEN = "#2563eb", "#dc2626", "#9ca3af", "#16a34a"
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
    accuracy = _thin_out(losses.reward_accuracy)
    top_loss = 1.05 * max(value for _, value in [*train, *valid, *accuracy]) or 1.0
    chart = leather.Chart(title)
    chart.add_x_scale(0, len(losses.train))
    chart.add_y_scale(0, top_loss)
    chart.add_x_axis(name="optimizer step", tick_formatter=_format_step)
    unit = "pair, and fraction of pairs" if accuracy else "token"
    chart.add_y_axis(name=f"loss, nats per {unit}", tick_formatter=_format_loss)
    chart.add_line(train, name="training, each step", stroke_color=_PALE_BLUE, width=1)
    chart.add_line(list(_smoothed(train)), name="training, running mean", stroke_color=BLUE)
    if valid:
        chart.add_series(leather.Series(valid, name="validation"), _DottedLine(RED))
    if accuracy:
        smoothed = list(_smoothed(accuracy))
        chart.add_line(smoothed, name="reward accuracy, running mean", stroke_color=GREEN)
    return render(chart, height=450)


def _format_step(step: Decimal, _index: int, _count: int) -> str:
    return "" if step % 1 else f"{int(step):,}"


def _format_loss(loss: Decimal, _index: int, _count: int) -> str:
    return f"{float(loss):g}"


def _thin_out(losses: Sequence[float]) -> list[Point]:
    """The value of each step. Where there are many, neighbouring steps are averaged."""
    if not losses:
        return []
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
