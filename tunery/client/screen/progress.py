"""Shows a job that is watched: a bar in a terminal, lines for a log, JSON for a program."""

import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from tunery.client.screen.terminal import (
    STYLES,
    console,
    duration,
    escape,
    local_time,
    number,
    print_json,
    say,
)
from tunery.client.service.api import Json
from tunery.client.service.live import ENDED, Message

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_REFRESHES_A_SECOND = 4


class View(ABC):
    """Shows the messages of a job. A context manager: after the block the terminal is as before."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        return

    @abstractmethod
    def show(self, message: Message) -> None:
        """Show a message."""

    @abstractmethod
    def show_break(self) -> None:
        """Say that the service is away."""


def choose_view(*, as_json: bool) -> View:
    if as_json:
        return _JsonView()
    return _BarView() if sys.stdout.isatty() else _LineView()


class _JsonView(View):
    def show(self, message: Message) -> None:
        print_json({"event": message.kind, "data": message.data})

    def show_break(self) -> None:
        print_json({"event": "disconnected", "data": {}})


class _LineView(View):
    def __init__(self) -> None:
        self._is_broken = False

    def show(self, message: Message) -> None:
        self._is_broken = False
        if message.kind == "event":
            print_event(message.data)
        elif message.kind == "end":
            print_end(message.data)

    def show_break(self) -> None:
        if not self._is_broken:
            say("The service does not answer. Waiting for it ...")
        self._is_broken = True


class _BarView(View):
    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - see the package

        self._job: Json = {}
        self._is_broken = False
        self._live = Live(
            console=console(),
            transient=True,
            refresh_per_second=_REFRESHES_A_SECOND,
            get_renderable=self._bar,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def close(self) -> None:
        self._live.stop()

    def show(self, message: Message) -> None:
        self._is_broken = False
        if message.kind == "event" and message.data["type"] == "message":
            self._live.console.print(_event_text(message.data))
        elif message.kind == "job":
            self._job = message.data
        elif message.kind == "step":
            self._job |= {"trained_steps": message.data["step"]}
            if message.data["train_loss"] is not None:
                self._job |= {"train_loss": message.data["train_loss"]}
        elif message.kind == "end":
            self._live.stop()
            print_end(message.data)

    def show_break(self) -> None:
        self._is_broken = True

    def _bar(self) -> "RenderableType":
        if self._is_broken:
            return _line("The service does not answer. Waiting for it ...", "yellow")
        return draw_bar(self._job) if self._job else _line("Connecting ...", "")


def draw_bar(job: Json) -> "RenderableType":
    """One line of the width of the terminal: what a job is doing, and how far it is."""
    if job.get("status") != "running" or not job.get("total_steps"):
        return _line(describe_waiting(job), STYLES.get(job.get("status", ""), ""))
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - see the package
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    done, total = job["trained_steps"], job["total_steps"]
    figures = [
        *(["stopping"] if job["cancel_requested_at"] else []),
        *(["pausing"] if job["pause_requested_at"] else []),
        f"{done:,}/{total:,}",
        *(f"{name} {number(job[key])}" for name, key in _LOSSES if job[key] is not None),
    ]
    if job["estimated_finish"]:
        figures.append(f"{duration(job['estimated_finish'] - time.time())} left")
    if job["tokens_per_second"]:
        figures.append(f"{job['tokens_per_second']:,.0f} tok/s")
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1, min_width=6)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row(ProgressBar(total=total, completed=done), Text(" ".join(figures), "cyan"))
    return grid


_LOSSES = (("loss", "train_loss"), ("valid", "valid_loss"))


def describe_waiting(job: Json) -> str:
    """What a job that does not train is doing, in one line, and why it waits if it does."""
    reason: str | None = job.get("waiting_reason")
    match job.get("status"):
        case "validating_files":
            return f"waiting: {reason}" if reason else "checking the data"
        case "queued":
            position = job.get("queue_position")
            parts = ["queued" if position is None else f"queued, position {position}"]
            return ": ".join([*parts, reason] if reason else parts)
        case "paused":
            return f"paused; to continue: tunery resume {job['id']}"
        case "running":
            return "starting"
        case status:
            return str(status)


def print_event(event: Json) -> None:
    """Print an event on one line, with its time."""
    console().print(_event_text(event), soft_wrap=True)


def print_end(job: Json) -> None:
    """Print how a job has ended, and the figures of its end."""
    from rich.text import Text  # noqa: PLC0415 - see the package

    status = job.get("status", "deleted")
    parts = [status]
    if status == "failed" and job["error"]:
        parts.append(job["error"]["message"])
    if job.get("fine_tuned_model"):
        parts.append(job["fine_tuned_model"])
    if status in ENDED:
        parts.append(f"{job['trained_steps']:,} steps")
        parts += [f"{name} {number(job[key])}" for name, key in _LOSSES if job[key] is not None]
        if job["started_at"]:
            parts.append(duration(job["finished_at"] - job["started_at"]))
    console().print(Text(escape(", ".join(parts)), STYLES.get(status, "")), soft_wrap=True)


def _event_text(event: Json) -> "Text":
    from rich.text import Text  # noqa: PLC0415 - see the package

    line = Text().append(f"{local_time(event['created_at'])}  ", "dim")
    return line.append(escape(event["message"]), STYLES.get(event["level"], ""))


def _line(text: str, style: str) -> "Text":
    from rich.text import Text  # noqa: PLC0415 - see the package

    return Text(escape(text), style, no_wrap=True, overflow="ellipsis")
