"""What the client prints: tables, JSON, figures and remarks, safe for a terminal."""

import json
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
"""The escape sequence SGR, which changes colours and nothing else."""

_ANY_WIDTH = 10_000
"""Columns of a line that no terminal shows: a program that reads it wants it whole."""

STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "failed": "red",
    "error": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "warn": "yellow",
}
"""Colours of statuses, and of the levels of events."""


def console(*, on_stderr: bool = False) -> "Console":
    """Return a console that takes no markup. Colours are for terminals, and NO_COLOR wins."""
    from rich.console import Console  # noqa: PLC0415 - see the package

    file = sys.stderr if on_stderr else sys.stdout
    width = None if file.isatty() else _ANY_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def has_colours() -> bool:
    """Whether what is printed to standard output may have colours."""
    shown = console()
    return shown.is_terminal and not shown.no_color


def say(text: str) -> None:
    """Print a remark for people to standard error, so that standard output has results alone."""
    console(on_stderr=True).print(escape(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document on one line. It is ASCII, so nothing in it controls a terminal."""
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headings. In a narrow terminal, only the last column becomes shorter.

    A cell that is a status has its colour; None is an empty cell. Without rows, standard error says
    so.
    """
    from rich.table import Table  # noqa: PLC0415 - see the package
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for place, heading in enumerate(headings, start=1):
        table.add_column(heading, no_wrap=place < len(headings))
    for row in rows:
        texts = ["" if cell is None else escape(str(cell)) for cell in row]
        table.add_row(
            *(Text(text, STYLES.get(text, ""), no_wrap=True, overflow="ellipsis") for text in texts)
        )
    console().print(table)
    if not rows:
        say(f"Found no {headings[0].lower()}.")


def listed(values: Sequence[object]) -> str:
    """A list as text: names, or numbers in brackets, because 3 layers are not layer [3]."""
    return str(values) if values and isinstance(values[0], int) else " ".join(map(str, values))


def local_time(unix_time: int) -> str:
    """A time in the time zone of this machine, to the second."""
    return f"{datetime.fromtimestamp(unix_time, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def age(unix_time: int) -> str:
    """Time since then in its largest unit, such as `5 min`."""
    return duration(time.time() - unix_time, units=1)


def duration(seconds: float, *, units: int = 2) -> str:
    """A duration in its largest units, such as `2 h 5 min`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = parts[first : first + units]
    return " ".join(f"{count} {unit}" for count, unit in shown if count) or "0 s"


def number(value: Any, digits: int = 4) -> str:
    """A loss or another figure for people. Empty for None."""
    return "" if value is None else f"{value:.{digits}g}"


def size(count: float) -> str:
    """Bytes for people, such as `12.3 MiB`, in the units of the dashboard."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:  # noqa: PLR2004 - so that three digits are enough
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def escape(text: str, *, keep: str = "") -> str:
    r"""Show what does not print as an escape such as `\x1b`, except the characters in `keep`."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def escape_all_but_colours(text: str) -> str:
    """Escape what does not print, except line feeds and colours."""
    parts = _COLOUR.split(text)
    return "".join(part if _COLOUR.fullmatch(part) else escape(part, keep="\n") for part in parts)


@contextmanager
def percent(name: str) -> Generator[Callable[[float], None]]:
    """Show how much of something is done; in a terminal only.

    Returns:
        A function to call with the fraction so far.
    """
    if not sys.stderr.isatty():
        yield lambda _fraction: None
        return
    from rich.progress import (  # noqa: PLC0415 - see the package
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
    )

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(bar_width=None), TaskProgressColumn())
    shown = console(on_stderr=True)
    with Progress(*columns, console=shown, transient=True, expand=True) as progress:
        task = progress.add_task(escape(name), total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


@contextmanager
def transfer(name: str, total: int) -> Generator[Callable[[int], None]]:
    """Show how much of something is sent or received; in a terminal only.

    Returns:
        A function to call with the bytes so far.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.progress import (  # noqa: PLC0415 - see the package
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
    )

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(bar_width=None), DownloadColumn())
    shown = console(on_stderr=True)
    with Progress(*columns, console=shown, transient=True, expand=True) as progress:
        task = progress.add_task(escape(name), total=total)
        yield lambda done: progress.update(task, completed=done)
