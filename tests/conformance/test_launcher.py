"""What every launcher must do: those that start a process, and the one that stands in for them."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app.core.job.child.training_events import Noted, TrainingEvent
from tests.fakes import Act, FakeLauncher, Waiting, Watch
from worker.launch.launcher import Ending, Launcher, Signal
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher

EVENTS = [Noted(message=f"event {number}") for number in range(3)]
Prepare = Callable[..., Launcher]
"""Makes a launcher whose child reports events or waits, logs a line, and ends with a code."""


@pytest.fixture(params=["local", "warm", "fake"])
def prepare(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Prepare]:
    warm = WarmLauncher("tests.stand_in_child", idle_s=60)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def prepare_fake(*acts: Act, exit_code: int = 0, log: str = "") -> Launcher:
        return FakeLauncher(acts, exit_code, log)

    def prepare_real(*acts: Act, exit_code: int = 0, log: str = "") -> Launcher:
        script = [
            ["log", log],
            *(["wait"] if isinstance(act, Waiting) else ["say", as_line(act)] for act in acts),
            ["exit", exit_code],
        ]
        (tmp_path / "script.json").write_text(json.dumps(script))
        return warm if request.param == "warm" else LocalLauncher("tests.stand_in_child")

    yield prepare_fake if request.param == "fake" else prepare_real
    warm.close()


def as_line(act: Act) -> str:
    assert isinstance(act, Noted)
    return act.model_dump_json()


def run(
    launcher: Launcher,
    directory: Path,
    *,
    on_event: Callable[[TrainingEvent], None] = lambda _: None,
    orders: Sequence[Signal] = (Signal.CONTINUE,),
) -> Ending:
    """Run a child that is given these orders, one at each look, and then the last one."""
    left = list(orders)
    return launcher.run(
        directory,
        Watch(
            on_event=on_event, requested_signal=lambda: left.pop(0) if len(left) > 1 else left[0]
        ),
    )


def test_what_the_child_reports_arrives_in_its_order(prepare: Prepare, tmp_path: Path) -> None:
    seen: list[TrainingEvent] = []

    run(prepare(*EVENTS), tmp_path, on_event=seen.append)

    assert seen == EVENTS


@pytest.mark.parametrize("exit_code", [0, 1, 3])
def test_the_end_of_a_child_is_told(prepare: Prepare, tmp_path: Path, exit_code: int) -> None:
    ending = run(prepare(exit_code=exit_code, log="what it logged"), tmp_path)

    assert ending == Ending(exit_code, was_asked=False, was_killed=False, log_tail="what it logged")


@pytest.mark.parametrize(
    ("order", "exit_code"),
    [(Signal.SAVE_AND_STOP, -signal.SIGTERM), (Signal.KILL, -signal.SIGKILL)],
)
def test_a_child_ends_when_it_is_told_to(
    prepare: Prepare, tmp_path: Path, order: Signal, exit_code: int
) -> None:
    """This one knows nothing of SIGTERM, which so ends it as well."""
    orders = [Signal.CONTINUE, Signal.CONTINUE, order]

    ending = run(prepare(Waiting()), tmp_path, orders=orders)

    assert ending.exit_code == exit_code
    assert (ending.was_asked, ending.was_killed) == (
        order is Signal.SAVE_AND_STOP,
        order is Signal.KILL,
    )


def test_what_on_event_raises_reaches_the_caller(prepare: Prepare, tmp_path: Path) -> None:
    def fail(_event: TrainingEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(prepare(*EVENTS, Waiting()), tmp_path, on_event=fail)
