"""What every launcher must do: the one that starts a process, and the one that stands in for it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.training_events import Noted, TrainingEvent
from tests.fakes import Act, FakeLauncher, Waiting
from worker.launcher import Ending, Launcher
from worker.local_launcher import LocalLauncher

EVENTS = [Noted(message=f"event {number}") for number in range(3)]
Prepare = Callable[..., Launcher]
"""Makes a launcher whose child reports events or waits, logs a line, and ends with a code."""


@pytest.fixture(params=["local", "fake"])
def prepare(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Prepare:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def prepare_fake(*acts: Act, exit_code: int = 0, log: str = "") -> Launcher:
        return FakeLauncher(acts, exit_code, log)

    def prepare_local(*acts: Act, exit_code: int = 0, log: str = "") -> Launcher:
        script = [
            ["log", log],
            *(["wait"] if isinstance(act, Waiting) else ["say", as_line(act)] for act in acts),
            ["exit", exit_code],
        ]
        (tmp_path / "script.json").write_text(json.dumps(script))
        return LocalLauncher("tests.stand_in_child")

    return prepare_fake if request.param == "fake" else prepare_local


def as_line(act: Act) -> str:
    assert isinstance(act, Noted)
    return act.model_dump_json()


def run(
    launcher: Launcher,
    directory: Path,
    *,
    on_event: Callable[[TrainingEvent], None] = lambda _: None,
    ticks: Iterator[bool] | None = None,
) -> Ending:
    """Run a child; it is told to stop when `ticks`, if given, says so or has an end."""
    return launcher.run(
        directory, on_event=on_event, tick=lambda: False if ticks is None else next(ticks, True)
    )


def test_what_the_child_reports_arrives_in_its_order(prepare: Prepare, tmp_path: Path) -> None:
    seen: list[TrainingEvent] = []

    run(prepare(*EVENTS), tmp_path, on_event=seen.append)

    assert seen == EVENTS


@pytest.mark.parametrize("exit_code", [0, 1, 3])
def test_the_end_of_a_child_is_told(prepare: Prepare, tmp_path: Path, exit_code: int) -> None:
    ending = run(prepare(exit_code=exit_code, log="what it logged"), tmp_path)

    assert ending == Ending(exit_code, was_stopped=False, log_tail="what it logged")


def test_a_child_is_stopped_when_tick_says_so(prepare: Prepare, tmp_path: Path) -> None:
    ending = run(prepare(Waiting()), tmp_path, ticks=iter([False, False]))

    assert ending.was_stopped
    assert ending.exit_code == -15


def test_a_child_that_is_silent_is_still_ticked(prepare: Prepare, tmp_path: Path) -> None:
    ticks = iter([False] * 3)

    run(prepare(Waiting()), tmp_path, ticks=ticks)

    assert list(ticks) == []


def test_what_on_event_raises_reaches_the_caller(prepare: Prepare, tmp_path: Path) -> None:
    def fail(_event: TrainingEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(prepare(*EVENTS, Waiting()), tmp_path, on_event=fail)


def test_what_tick_raises_reaches_the_caller(prepare: Prepare, tmp_path: Path) -> None:
    def fail() -> Iterator[bool]:
        yield False
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(prepare(Waiting()), tmp_path, ticks=fail())
