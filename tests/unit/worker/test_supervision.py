"""What children really do, however they were started; more of that is in `tests/conformance`."""

import json
import os
import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.containment import find_layers
from app.core.job.child.training_events import Noted, ProtocolError, TrainingEvent
from tests.effort import effort
from tests.fakes import Watch
from tests.waiting import wait_until
from worker.launch.child_output import LOG_TAIL_BYTES, LOG_TAIL_LINES, MAX_LINE_BYTES
from worker.launch.launcher import Ending, Launcher, Signal
from worker.launch.locks import JobLock, JobLockedError, try_lock
from worker.launch.sandbox.apply import is_applied
from worker.launch.sandbox.sandbox import NO_SANDBOX, Sandbox
from worker.launch.supervision import LOCK_S, PASSED_ON, LocalLauncher
from worker.launch.warm import WarmLauncher

EVENT = Noted(message="hello")
without_sandbox = pytest.mark.parametrize("make_launcher", ["local", "warm"], indirect=True)
"""For what the sandbox does not let a child do."""
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


@pytest.fixture(params=["local", "warm", "local contained", "warm contained"])
def make_launcher(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Launcher]]:
    kind, _, is_contained = request.param.partition(" ")
    sandbox = NO_SANDBOX
    if is_contained:
        sandbox = Sandbox(find_layers(), tmp_path, tmp_path / "workers", 1)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with ExitStack() as stack:

        def make(lock_s: float = LOCK_S) -> Launcher:
            if kind == "local":
                return LocalLauncher("tests.stand_in_child", sandbox=sandbox, lock_s=lock_s)
            warm = WarmLauncher("tests.stand_in_child", idle_s=60, sandbox=sandbox, lock_s=lock_s)
            stack.callback(warm.close)
            return warm

        yield make


@pytest.fixture
def launcher(make_launcher: Callable[..., Launcher]) -> Launcher:
    return make_launcher()


@pytest.fixture
def impatient(make_launcher: Callable[..., Launcher]) -> Launcher:
    """One that does not wait for the job's previous child."""
    return make_launcher(lock_s=0.1)


@pytest.fixture
def run(directory: Path, seen: list[TrainingEvent], launcher: Launcher) -> Run:
    """Run a child that follows this script and these signals."""

    def run(
        *script: list[Any], requested_signal: Callable[[], Signal] = lambda: Signal.CONTINUE
    ) -> Ending:
        write_script(directory, *script)
        return launcher.run(
            directory, Watch(on_event=seen.append, requested_signal=requested_signal)
        )

    return run


def write_script(directory: Path, *script: list[Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "script.json").write_text(json.dumps(script))


def is_free(lock: Path) -> bool:
    """Whether no process holds this lock, and so none lives that had it."""
    descriptor = try_lock(lock)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def once(condition: Callable[[], object], wanted: Signal = Signal.KILL) -> Callable[[], Signal]:
    """This signal as soon as the condition is true."""
    return lambda: wanted if condition() else Signal.CONTINUE


def test_a_child_that_is_asked_to_save_is_given_the_time_it_needs(
    run: Run, seen: list[TrainingEvent]
) -> None:
    ending = run(
        ["on-term", "say", EVENT.model_dump_json()],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        requested_signal=once(lambda: seen, Signal.SAVE_AND_STOP),
    )

    assert seen == [EVENT, EVENT]
    assert ending == Ending(0, was_asked=True, was_killed=False, log_tail="")


def test_a_child_that_does_not_save_is_killed_when_its_time_is_up(
    run: Run, seen: list[TrainingEvent]
) -> None:
    signals = iter([Signal.SAVE_AND_STOP] * 3)

    ending = run(
        ["ignore", "SIGTERM"],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        requested_signal=lambda: next(signals, Signal.KILL) if seen else Signal.CONTINUE,
    )

    assert ending == Ending(-signal.SIGKILL, was_asked=True, was_killed=True, log_tail="")


def test_signals_are_passed_on_while_an_event_is_being_written_down(
    directory: Path, launcher: Launcher
) -> None:
    """Such as a checkpoint whose bytes take long to copy."""
    write_script(directory, ["say", EVENT.model_dump_json()], ["wait"])
    is_busy = threading.Event()
    has_ended: list[bool] = []

    def be_busy(_event: TrainingEvent) -> None:
        is_busy.set()
        lock = directory.parent.with_suffix(".lock")
        wait_until(lambda: is_free(lock), within_s=30)  # so the child has ended
        has_ended.append(True)

    launcher.run(directory, Watch(on_event=be_busy, requested_signal=once(is_busy.is_set)))

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
            its_worker.run(
                directory, Watch(on_event=seen.append, requested_signal=lambda: Signal.CONTINUE)
            )
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
    directory: Path, impatient: Launcher
) -> None:
    write_script(directory, ["exit", 0])
    held = JobLock.of(directory).take(within_s=0)

    with pytest.raises(JobLockedError):
        impatient.run(directory, Watch(on_event=print, requested_signal=lambda: Signal.CONTINUE))

    os.close(held)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_of_a_signal_says_which(run: Run, name: str) -> None:
    ending = run(["raise", name])

    assert (ending.exit_code, ending.was_killed) == (-signal.Signals[name], False)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(["say", "Loading weights: 100%"], id="text"),
        pytest.param(["say", '{"kind": "exploded"}'], id="kind"),
        pytest.param(["say", "x" * 2 * MAX_LINE_BYTES + EVENT.model_dump_json()], id="long"),
        pytest.param(["blurt", "x" * 2 * MAX_LINE_BYTES], id="endless"),
    ],
)
def test_a_line_that_is_no_event_ends_the_child(
    run: Run, directory: Path, seen: list[TrainingEvent], step: list[Any]
) -> None:
    with pytest.raises(ProtocolError):
        run(["say", EVENT.model_dump_json()], ["leave-behind"], step, ["wait"])

    assert seen == [EVENT]
    wait_until(lambda: is_free(directory / "left.lock"), within_s=END_S)


def test_the_event_that_a_child_was_writing_when_it_died_is_none(
    run: Run, seen: list[TrainingEvent]
) -> None:
    ending = run(["say", EVENT.model_dump_json()], ["blurt", '{"kind": "noted", '])

    assert (ending.exit_code, seen) == (0, [EVENT])


def test_a_log_without_an_end_fills_neither_memory_nor_disk(run: Run, directory: Path) -> None:
    tracemalloc.start()
    ending = run(["log-bytes", effort(20, long=200) * 1024 * 1024], ["exit", 3])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (ending.exit_code, ending.log_tail) == (3, "x" * LOG_TAIL_BYTES)
    assert peak_bytes < 4 * 1024 * 1024
    assert sum(path.stat().st_size for path in directory.rglob("*")) < 64 * 1024


@without_sandbox
def test_the_log_is_not_read_from_where_a_child_can_put_a_link(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the machine")

    ending = run(["link", "train.log", str(tmp_path / "secret")], ["log", "its own"], ["exit", 1])

    assert ending.log_tail == "its own"


ESCAPED = "import os, signal; signal.alarm(30)"  # it ends by itself where nothing can end it
SILENT = f"{ESCAPED}; signal.pause()"
NOISY = f"{ESCAPED}\nwhile True: os.write(2, b'x' * 1000)"


@without_sandbox
@pytest.mark.parametrize("program", [SILENT, NOISY], ids=["silent", "noisy"])
def test_a_process_that_has_escaped_does_not_keep_the_worker_waiting(
    run: Run, program: str
) -> None:
    """It is in another session, so no signal to the child's group reaches it."""
    ending = run(["escape", program], ["exit", 1])

    assert (ending.exit_code, ending.was_killed) == (1, False)


@without_sandbox
def test_a_child_is_killed_although_a_process_has_escaped(
    run: Run, seen: list[TrainingEvent]
) -> None:
    ending = run(
        ["escape", SILENT],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        requested_signal=once(lambda: seen),
    )

    assert ending.was_killed


def test_what_a_child_leaves_behind_does_not_keep_the_worker_waiting(
    run: Run, directory: Path
) -> None:
    """Such as a loader process that survived the crash of what had started it."""
    ending = run(["leave-behind"], ["exit", 1])

    assert (ending.exit_code, ending.was_killed) == (1, False)
    wait_until(lambda: is_free(directory / "left.lock"), within_s=END_S)


def test_what_a_child_has_started_is_stopped_with_it(
    run: Run, directory: Path, seen: list[TrainingEvent]
) -> None:
    run(
        ["leave-behind"],
        ["say", EVENT.model_dump_json()],
        ["wait"],
        requested_signal=once(lambda: seen),
    )

    wait_until(lambda: is_free(directory / "left.lock"), within_s=END_S)


def test_an_error_of_the_worker_stops_the_child(directory: Path, launcher: Launcher) -> None:
    write_script(directory, ["leave-behind"], ["say", EVENT.model_dump_json()], ["wait"])

    def fail(_event: TrainingEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launcher.run(directory, Watch(on_event=fail, requested_signal=lambda: Signal.CONTINUE))

    wait_until(lambda: is_free(directory / "left.lock"), within_s=END_S)


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
        *PASSED_ON,
        "HF_HUB_OFFLINE",
        "PYTHONUNBUFFERED",
        "TOKENIZERS_PARALLELISM",
    }


def test_a_ctrl_c_in_the_workers_terminal_does_not_reach_the_child(
    run: Run, directory: Path, seen: list[TrainingEvent]
) -> None:
    sessions: list[int] = []

    def look() -> Signal:
        if not seen:
            return Signal.CONTINUE
        holder = JobLock.of(directory)._path.read_text().split()[0]
        sessions.append(os.getsid(int(holder)))
        return Signal.KILL

    run(["say", EVENT.model_dump_json()], ["wait"], requested_signal=look)

    assert sessions[0] != os.getsid(0)


@pytest.mark.parametrize("make_launcher", ["local", "local contained"], indirect=True)
def test_a_stopped_child_does_not_outlive_its_worker(launcher: Launcher, directory: Path) -> None:
    """As when a worker is killed while a check beside its training is stopped for a moment."""
    write_script(directory, ["wait"])
    lock = directory.parent.with_suffix(".lock")
    worker = os.fork()
    if worker == 0:
        try:
            launcher.run(directory, Watch(lambda _event: None, lambda: Signal.CONTINUE))
        finally:
            os._exit(1)
    try:
        child = int(
            wait_until(lambda: lock.exists() and lock.read_text(), within_s=END_S).split()[0]
        )
        os.killpg(child, signal.SIGSTOP)  # it has only just begun
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)

    try:
        wait_until(lambda: is_free(lock), within_s=END_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


@pytest.mark.parametrize("make_launcher", ["local contained", "warm contained"], indirect=True)
def test_a_contained_child_may_be_stopped_once_it_runs(run: Run, directory: Path) -> None:
    """Each of its processes then dies with its parent."""
    write_script(directory)
    was_applied = is_applied(directory)

    run(["say", EVENT.model_dump_json()])

    assert not was_applied
    assert is_applied(directory)
