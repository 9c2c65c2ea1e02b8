"""What children really do, however they were started; more of that is in `tests/conformance`."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.job.training_events import Noted, TrainingEvent
from tests.waiting import wait_until
from worker.launch import supervision
from worker.launch.job_lock import JobLock, JobLockedError
from worker.launch.launcher import Ending, Launcher, Order
from worker.launch.local import LocalLauncher
from worker.launch.supervision import LOG_TAIL_LINES
from worker.launch.warm import WarmLauncher

EVENT = Noted(message="hello")
END_S = 30
"""Longest time an end may take to be seen; generous, as machines that test are busy."""

Run = Callable[..., Ending]


@pytest.fixture
def seen() -> list[TrainingEvent]:
    """What the children of this test have reported."""
    return []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of the first attempt of a job."""
    return tmp_path / "job" / "attempt-1"


@pytest.fixture(params=["local", "warm"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    warm = WarmLauncher("tests.stand_in_child", idle_s=60)
    yield warm if request.param == "warm" else LocalLauncher("tests.stand_in_child")
    warm.close()


@pytest.fixture
def run(directory: Path, seen: list[TrainingEvent], launcher: Launcher) -> Run:
    """Run a child that follows this script and these orders."""

    def run(*script: list[Any], order: Callable[[], Order] = lambda: Order.GO_ON) -> Ending:
        write_script(directory, *script)
        return launcher.run(directory, on_event=seen.append, order=order)

    return run


def write_script(directory: Path, *script: list[Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "script.json").write_text(json.dumps(script))


def is_running(pid: int) -> bool:
    """Whether there is such a process, which is more than its unburied entry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def once(condition: Callable[[], object], order: Order = Order.END) -> Callable[[], Order]:
    """This order as soon as the condition is true."""
    return lambda: order if condition() else Order.GO_ON


def test_a_child_that_is_asked_to_save_is_given_the_time_it_needs(
    run: Run, seen: list[TrainingEvent]
) -> None:
    ending = run(
        ["on-term", "say", EVENT.model_dump_json()],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        order=once(lambda: seen, Order.SAVE_AND_END),
    )

    assert seen == [EVENT, EVENT]
    assert ending == Ending(0, was_asked=True, was_killed=False, log_tail="")


def test_a_child_that_does_not_save_is_killed_when_its_time_is_up(
    run: Run, seen: list[TrainingEvent]
) -> None:
    orders = iter([Order.SAVE_AND_END] * 3)

    ending = run(
        ["ignore", "SIGTERM"],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        order=lambda: next(orders, Order.END) if seen else Order.GO_ON,
    )

    assert ending == Ending(-signal.SIGKILL, was_asked=True, was_killed=True, log_tail="")


def test_orders_are_carried_out_while_an_event_is_being_written_down(
    directory: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a checkpoint whose bytes take long to copy."""
    write_script(directory, ["say", EVENT.model_dump_json()], ["wait"])
    is_busy = threading.Event()
    has_ended: list[bool] = []

    def be_busy(_event: TrainingEvent) -> None:
        is_busy.set()
        path = JobLock.of(directory)
        os.close(path.take(within_s=30))  # the child has let go of it
        has_ended.append(True)

    monkeypatch.setattr(JobLock, "_end_holder", lambda _: None)
    launcher.run(directory, on_event=be_busy, order=once(is_busy.is_set))

    assert has_ended == [True]


def test_a_child_of_an_earlier_attempt_is_ended_first(
    directory: Path, run: Run, seen: list[TrainingEvent]
) -> None:
    """Its worker was suspended: it lost the job, and its child does not know."""
    write_script(directory, ["environment"], ["wait"])
    endings: list[Ending] = []
    its_worker = WarmLauncher("tests.stand_in_child", idle_s=60)
    suspended = threading.Thread(
        target=lambda: endings.append(
            its_worker.run(directory, on_event=seen.append, order=lambda: Order.GO_ON)
        )
    )
    suspended.start()
    # The file shows that the child has read its script, which the next child's script replaces.
    wait_until((directory / "environment").exists, within_s=30)

    run(["say", EVENT.model_dump_json()])

    suspended.join(30)
    its_worker.close()
    assert [ending.exit_code for ending in endings] == [-signal.SIGKILL]
    assert seen == [EVENT]


def test_a_child_that_would_not_end_is_waited_for_in_vain(
    directory: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.mkdir(parents=True)
    held = JobLock.of(directory).take(within_s=0)
    monkeypatch.setattr(supervision, "LOCK_S", 0.1)

    with pytest.raises(JobLockedError):
        run(["exit", 0])

    os.close(held)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_of_a_signal_says_which(run: Run, name: str) -> None:
    ending = run(["raise", name])

    assert (ending.exit_code, ending.was_killed) == (-signal.Signals[name], False)


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
    monkeypatch.setattr(supervision, "MAX_LINE_BYTES", 1000)
    line = EVENT.model_dump_json()

    run(["say", "x" * 10_000 + "y" * (1000 - len(line)) + line], ["say", line])

    assert seen == [EVENT]


def test_what_a_child_leaves_behind_does_not_keep_the_worker_waiting(
    run: Run, directory: Path
) -> None:
    """Such as a loader process that survived the crash of what had started it."""
    ending = run(["leave-behind"], ["exit", 1])

    assert (ending.exit_code, ending.was_killed) == (1, False)
    left = int((directory / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=END_S)


def test_what_a_child_has_started_is_stopped_with_it(
    run: Run, directory: Path, seen: list[TrainingEvent]
) -> None:
    run(
        ["leave-behind"],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        order=once(lambda: seen),
    )

    left = int((directory / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=END_S)


def test_an_error_of_the_worker_stops_the_child(directory: Path, launcher: Launcher) -> None:
    write_script(directory, ["leave-behind"], ["say", EVENT.model_dump_json()], ["wait"])

    def fail(_event: TrainingEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launcher.run(directory, on_event=fail, order=lambda: Order.GO_ON)

    left = int((directory / "pid").read_text())
    wait_until(lambda: not is_running(left), within_s=END_S)


def test_the_end_of_the_log_is_kept(run: Run) -> None:
    ending = run(*(["log", f"line {number}"] for number in range(100)), ["exit", 1])

    assert ending.log_tail.splitlines() == [
        f"line {number}" for number in range(100 - LOG_TAIL_LINES, 100)
    ]


def test_a_child_sees_no_secret_of_the_workers_environment(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("HF_TOKEN", "secret")

    run(["environment"])

    passed_on = set((directory / "environment").read_text().splitlines())
    assert {"HF_HUB_OFFLINE", "PATH"} <= passed_on
    assert passed_on - {"LC_CTYPE"} <= {
        *supervision.PASSED_ON,
        "HF_HUB_OFFLINE",
        "PYTHONUNBUFFERED",
        "TOKENIZERS_PARALLELISM",
    }


def test_a_ctrl_c_in_the_workers_terminal_does_not_reach_the_child(
    run: Run, directory: Path, seen: list[TrainingEvent]
) -> None:
    sessions: list[int] = []

    def look() -> Order:
        if not seen:
            return Order.GO_ON
        sessions.append(os.getsid(int((directory / "pid").read_text())))
        return Order.END

    run(["leave-behind"], ["say", EVENT.model_dump_json()], ["wait"], order=look)

    assert sessions[0] != os.getsid(0)
