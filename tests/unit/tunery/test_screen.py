"""What the client writes to a terminal, and what it reads from a stream."""

import io
from typing import Any

import httpx2
import pytest
from rich.console import Console

from tests.terminal import COLUMNS
from tunery.client.screen.progress import describe_waiting, draw_bar
from tunery.client.screen.terminal import duration, escape, escape_all_but_colours, size
from tunery.client.service.live import Message, read_messages

RUNNING: dict[str, Any] = {
    "id": "ftjob-1",
    "status": "running",
    "trained_steps": 123_456,
    "total_steps": 1_000_000,
    "train_loss": 1.23456,
    "valid_loss": 0.98765,
    "tokens_per_second": 12_345.6,
    "estimated_finish": 1,
    "cancel_requested_at": None,
    "pause_requested_at": 1,
}


def draw(job: dict[str, Any], *, columns: int = COLUMNS) -> str:
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    console.print(draw_bar(job), end="")
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_bar_fits_on_one_line() -> None:
    line = draw(RUNNING).rstrip("\n")

    assert " pausing 123,456/1,000,000 loss 1.235 valid 0.9877 0 s left 12," in line
    assert len(line) <= COLUMNS
    assert "\n" not in line
    assert "\n" not in draw(RUNNING, columns=30).rstrip("\n")


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"status": "validating_files"}, "checking the data"),
        (
            {"status": "validating_files", "waiting_reason": "No worker is running."},
            "waiting: No worker is running.",
        ),
        ({"status": "queued", "queue_position": 3, "waiting_reason": None}, "queued, position 3"),
        (
            {"status": "queued", "queue_position": 1, "waiting_reason": "It needs 3 GiB."},
            "queued, position 1: It needs 3 GiB.",
        ),
        ({"status": "paused", "id": "ftjob-1"}, "paused; to continue: tunery resume ftjob-1"),
        ({"status": "running"}, "starting"),
    ],
)
def test_what_a_job_waits_for_is_said(job: dict[str, Any], text: str) -> None:
    assert describe_waiting(job) == text
    assert draw(job).strip() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_have_three_digits() -> None:
    assert [size(count) for count in (0, 999, 1020, 5920, 12_345_678, 2**41)] == [
        "0 B",
        "999 B",
        "0.996 KiB",
        "5.78 KiB",
        "11.8 MiB",
        "2.05e+03 GiB",
    ]


def test_only_what_prints_is_written_as_it_is() -> None:
    assert escape("a\x1b[31mb\x9bc\nd\u202ee é 漢 [red]") == (
        "a\\x1b[31mb\\x9bc\\nd\\u202ee é 漢 [red]"
    )
    assert escape_all_but_colours("\x1b[32mok\x1b[0m\n\x1b]0;t\x07\x1b[2J") == (
        "\x1b[32mok\x1b[0m\n\\x1b]0;t\\x07\\x1b[2J"
    )


def test_a_stream_is_read_as_it_was_cut() -> None:
    """Chunks end anywhere, also within a character; lines end in any way that is usual."""
    content = (
        ': hello\nretry: 1000\n\nid: 1\r\nevent: job\r\ndata: {"a": "é\u2028"}\r\n\r\n'
        ":\n\nid:2\nevent:event\ndata:[1,\ndata:2]\n\n"
        'event: step\ndata: {"cut": '
    ).encode()

    for length in (1, 2, 7, len(content)):
        chunks = [content[start : start + length] for start in range(0, len(content), length)]
        response = httpx2.Response(200, content=iter(chunks))
        assert [*read_messages(response)] == [
            Message("job", {"a": "é\u2028"}, "1"),
            Message("event", [1, 2], "2"),  # pyright: ignore[reportArgumentType]
        ]
