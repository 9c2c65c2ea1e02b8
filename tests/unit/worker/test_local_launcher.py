"""What children really do; that every launcher behaves alike is in `tests/conformance`."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.training_events import Noted, TrainingEvent
from tests.waiting import wait_until
from worker import local_launcher
from worker.launcher import TICK_INTERVAL_S, Ending
from worker.local_launcher import LOG_TAIL_LINES, STOP_GRACE_S, LocalLauncher

CANCEL_S = 5.0
EVENT = Noted(message="hello")

Run = Callable[..., Ending]


@pytest.fixture
def seen() -> list[TrainingEvent]:
    """What the children of this test have reported."""
    return []


@pytest.fixture
def run(tmp_path: Path, seen: list[TrainingEvent], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a child that follows this script, and stop it when `tick` says so."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))

    def run(*script: list[Any], tick: Callable[[], bool] = lambda: False) -> Ending:
        (tmp_path / "script.json").write_text(json.dumps(script))
        launcher = LocalLauncher("tests.stand_in_child")
        return launcher.run(tmp_path, on_event=seen.append, tick=tick)

    return run


def is_running(pid: int) -> bool:
    """Whether there is such a process, which is more than its unburied entry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_will_not_end_is_killed_within_the_promise(
    run: Run, seen: list[TrainingEvent]
) -> None:
    asked_s: list[float] = []

    def stop_once_it_is_deaf() -> bool:
        if seen and not asked_s:
            asked_s.append(time.monotonic())
        return bool(seen)

    ending = run(
        ["ignore", "SIGTERM"], ["say", EVENT.model_dump_json()], ["wait"], tick=stop_once_it_is_deaf
    )

    took_s = time.monotonic() - asked_s[0]
    assert (ending.exit_code, ending.was_stopped) == (-signal.SIGKILL, True)
    assert STOP_GRACE_S <= took_s < CANCEL_S - TICK_INTERVAL_S


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_of_a_signal_says_which(run: Run, name: str) -> None:
    ending = run(["raise", name])

    assert (ending.exit_code, ending.was_stopped) == (-signal.Signals[name], False)


def test_lines_that_are_no_events_are_logged_and_passed_over(
    run: Run, seen: list[TrainingEvent], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "worker"):
        ending = run(
            ["say", "Loading weights: 100%"],
            ["say", '{"kind": "exploded"}'],
            ["say", EVENT.model_dump_json()],
            ["blurt", '{"kind": "noted", '],
        )

    assert seen == [EVENT]
    assert ending.exit_code == 0
    assert len(caplog.records) == 3


def test_an_endless_line_is_not_collected_and_its_end_is_no_event(
    run: Run, seen: list[TrainingEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_launcher, "MAX_LINE_BYTES", 1000)
    line = EVENT.model_dump_json()

    run(["say", "x" * 10_000 + "y" * (1000 - len(line)) + line], ["say", line])

    assert seen == [EVENT]


def test_what_a_child_leaves_behind_does_not_keep_the_worker_waiting(
    run: Run, tmp_path: Path
) -> None:
    """Such as a loader process that survived the crash of what had started it."""
    ending = run(["leave-behind"], ["exit", 1])

    assert (ending.exit_code, ending.was_stopped) == (1, False)
    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=5)


def test_what_a_child_has_started_is_stopped_with_it(
    run: Run, tmp_path: Path, seen: list[TrainingEvent]
) -> None:
    run(
        ["leave-behind"],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        tick=lambda: bool(seen),
    )

    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=5)


def test_an_error_of_the_worker_stops_the_child(run: Run, tmp_path: Path) -> None:
    def fail_once_it_waits() -> bool:
        if (tmp_path / "pid").exists():
            raise ZeroDivisionError
        return False

    with pytest.raises(ZeroDivisionError):
        run(["leave-behind"], ["wait"], tick=fail_once_it_waits)

    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=5)


def test_the_end_of_the_log_is_kept(run: Run) -> None:
    ending = run(*(["log", f"line {number}"] for number in range(100)), ["exit", 1])

    assert ending.log_tail.splitlines() == [
        f"line {number}" for number in range(100 - LOG_TAIL_LINES, 100)
    ]


def test_a_child_sees_no_secret_of_the_workers_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("HF_TOKEN", "secret")

    run(["environment"])

    passed_on = set((tmp_path / "environment").read_text().splitlines())
    assert {"HF_HUB_OFFLINE", "PATH"} <= passed_on
    assert passed_on - {"LC_CTYPE"} <= {
        *local_launcher._PASSED_ON,
        "HF_HUB_OFFLINE",
        "PYTHONUNBUFFERED",
        "TOKENIZERS_PARALLELISM",
    }


def test_a_ctrl_c_in_the_workers_terminal_does_not_reach_the_child(
    run: Run, tmp_path: Path, seen: list[TrainingEvent]
) -> None:
    sessions: list[int] = []

    def look() -> bool:
        if seen:
            sessions.append(os.getsid(int((tmp_path / "pid").read_text())))
        return bool(seen)

    run(["leave-behind"], ["say", EVENT.model_dump_json()], ["wait"], tick=look)

    assert sessions[0] != os.getsid(0)
