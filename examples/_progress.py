"""A job's progress on one line: drawn over on a terminal, now and then a new one elsewhere."""

import os
import sys
import time
from typing import NoReturn, Self

from openai.types.fine_tuning import FineTuningJob
from tqdm import tqdm

LINES_ELSEWHERE = 12
"""About how many lines a whole job takes where nothing can be drawn over, as in a log."""


class Progress:
    """A context manager: leaving it ends the line."""

    def __init__(self) -> None:
        # A terminal may not know its size, and then tqdm draws nothing at all.
        self._is_terminal = sys.stdout.isatty() and os.get_terminal_size().columns > 0
        self._bar: tqdm[NoReturn] | None = None
        self._printed_step = 0
        self._printed_position: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def note(self, message: str) -> None:
        """Print a line above the progress."""
        tqdm.write(message, file=sys.stdout)

    def show(self, job: FineTuningJob) -> None:
        # What our API adds to OpenAI's is there as attributes, unknown to the client's types.
        extra = job.model_extra or {}
        step: int = extra.get("trained_steps") or 0
        total: int | None = extra.get("total_steps")
        if total is None:
            self._show_position(extra.get("queue_position"))
            return
        details = describe(extra.get("train_loss"), extra.get("tokens_per_second"), job)
        if self._is_terminal:
            self._draw(step, total, details)
        elif step == total or step - self._printed_step >= total / LINES_ELSEWHERE:
            if step != self._printed_step:
                print(f"step {step}/{total}, {details}", flush=True)
            self._printed_step = step

    def _draw(self, step: int, total: int, details: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                file=sys.stdout,
                bar_format="{percentage:3.0f}%|{bar:30}| step {n_fmt}/{total_fmt}{postfix}",
            )
        self._bar.n = step
        self._bar.set_postfix_str(details)

    def _show_position(self, position: int | None) -> None:
        if position is not None and position != self._printed_position:
            self.note(f"In the queue as number {position}")
        self._printed_position = position


def describe(loss: float | None, tokens_per_second: float | None, job: FineTuningJob) -> str:
    """Loss, speed and time left, as far as they are known."""
    parts: list[str] = []
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if tokens_per_second is not None:
        parts.append(f"{tokens_per_second:.0f} tokens/s")
    if job.estimated_finish is not None:
        left_s = max(0, job.estimated_finish - int(time.time()))
        parts.append(f"{left_s // 60}:{left_s % 60:02} left")
    return ", ".join(parts) or "starting"
