"""What is particular to children that a fork server forks; the rest is in `test_supervision`."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.core.job.child.training_events import Noted, TrainingEvent
from tests.fakes import Watch
from tests.waiting import wait_until
from worker.launch.launcher import Ending, Signal
from worker.launch.locks import JobLock, start_ticks, try_lock
from worker.launch.warm import MAX_FAILURES, WarmLauncher

PROJECT = Path(__file__).parents[3]
EVENT = Noted(message="hello")
SAY = ["say", EVENT.model_dump_json()]
END_S = 30
"""Longest time an end may take to be seen; generous, as machines that test are busy."""


@pytest.fixture(autouse=True)
def project_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))


@pytest.fixture
def launcher() -> Iterator[WarmLauncher]:
    launcher = WarmLauncher("tests.stand_in_child", idle_s=60)
    yield launcher
    launcher.close()


@pytest.fixture
def seen() -> list[TrainingEvent]:
    """What the children of this test have reported."""
    return []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "job" / "attempt-1"


Run = Callable[..., Ending]


@pytest.fixture
def run(launcher: WarmLauncher, directory: Path, seen: list[TrainingEvent]) -> Run:
    """Run a child that follows this script and these signals; `prepare` is for its fork server."""

    def run(
        *script: list[Any],
        prepare: list[list[Any]] | None = None,
        requested_signal: Callable[[], Signal] = lambda: Signal.CONTINUE,
        on_event: Callable[[TrainingEvent], None] = seen.append,
    ) -> Ending:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "prepare.json").write_text(json.dumps(prepare or []))
        (directory / "script.json").write_text(json.dumps(script))
        return launcher.run(directory, Watch(on_event=on_event, requested_signal=requested_signal))

    return run


def fork_server_of(launcher: WarmLauncher) -> int:
    assert launcher._fork_server is not None
    return launcher._fork_server.pid


def holder_of(directory: Path) -> int:
    """Process id of the child that holds the lock of the job."""
    return int(JobLock.of(directory)._path.read_text().split()[0])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def open_files(pid: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that this loop itself reads
            found[int(link.name)] = str(link.readlink())
    return found


def test_each_job_has_a_process_of_its_own_forked_from_the_same(
    run: Run, launcher: WarmLauncher, directory: Path
) -> None:
    children: list[int] = []
    parents: list[int] = []

    def look(_event: TrainingEvent) -> None:
        children.append(holder_of(directory))
        parents.append(parent_of(children[-1]))

    for _ in range(2):
        run(SAY, ["wait"], on_event=look, requested_signal=lambda: end_if(children))
        assert start_ticks(children.pop()) is None
    assert parents == [fork_server_of(launcher)] * 2


def end_if(condition: object) -> Signal:
    return Signal.KILL if condition else Signal.CONTINUE


def test_a_child_is_gone_for_good_when_its_job_has_ended(run: Run, directory: Path) -> None:
    run(["exit", 0])

    assert not Path(f"/proc/{holder_of(directory)}").exists()


def test_a_child_keeps_its_process_id_until_nobody_can_mistake_it(
    run: Run, directory: Path
) -> None:
    states: list[str] = []

    def wait_for_end(_event: TrainingEvent) -> None:
        wait_until(lambda: start_ticks(holder_of(directory)) is None, within_s=END_S)
        stat = Path(f"/proc/{holder_of(directory)}/stat").read_text()
        states.append(stat.rpartition(")")[2].split()[0])

    run(SAY, ["exit", 0], on_event=wait_for_end)

    assert states == ["Z"]  # it has ended, and its id is taken


def test_a_child_has_nothing_open_that_is_not_its_own(
    run: Run, directory: Path, tmp_path: Path
) -> None:
    found: dict[int, str] = {}

    def look(_event: TrainingEvent) -> None:
        found.update(open_files(holder_of(directory)))

    with (tmp_path / "private").open("w"):
        run(SAY, ["wait"], on_event=look, requested_signal=lambda: end_if(found))

    assert found.pop(0) == os.devnull
    assert found.pop(1).startswith("pipe:")
    assert found.pop(2).startswith("pipe:")
    assert list(found.values()) == [str(JobLock.of(directory)._path)]


def test_nothing_stays_open_in_worker_and_fork_server_from_job_to_job(
    run: Run, launcher: WarmLauncher
) -> None:
    run(["exit", 0])
    before = [sorted(open_files(pid)) for pid in (os.getpid(), fork_server_of(launcher))]

    for _ in range(3):
        run(["exit", 1])

    after = [sorted(open_files(pid)) for pid in (os.getpid(), fork_server_of(launcher))]
    assert after == before


def test_a_fork_server_ends_when_it_was_idle_for_long(directory: Path, run: Run) -> None:
    launcher = WarmLauncher("tests.stand_in_child", idle_s=0.2)
    run(["exit", 0])  # fills the directory

    for exit_code in (0, 1):
        (directory / "script.json").write_text(json.dumps([["exit", exit_code]]))
        ending = launcher.run(
            directory, Watch(on_event=print, requested_signal=lambda: Signal.CONTINUE)
        )
        assert ending.exit_code == exit_code
        pid = fork_server_of(launcher)
        wait_until(lambda pid=pid: start_ticks(pid) is None, within_s=END_S)
    launcher.close()


def test_a_fork_server_does_not_grow_idle_while_its_child_trains(
    directory: Path, run: Run, seen: list[TrainingEvent]
) -> None:
    launcher = WarmLauncher("tests.stand_in_child", idle_s=0.05)
    run(["exit", 0])
    (directory / "script.json").write_text(json.dumps([["wait"]]))
    looks = iter(range(5))

    ending = launcher.run(
        directory,
        Watch(on_event=seen.append, requested_signal=lambda: end_if(next(looks, None) is None)),
    )

    assert (ending.exit_code, ending.was_killed) == (-signal.SIGKILL, True)
    launcher.close()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_fork_server_that_was_killed_is_replaced(
    run: Run, launcher: WarmLauncher, seen: list[TrainingEvent], name: str
) -> None:
    run(SAY)
    first = fork_server_of(launcher)
    os.kill(first, signal.Signals[name])

    ending = run(SAY)

    assert ending.exit_code == 0
    assert seen == [EVENT, EVENT]
    assert fork_server_of(launcher) != first


def test_a_fork_server_that_hangs_is_replaced(run: Run, launcher: WarmLauncher) -> None:
    run(["exit", 0])
    first = fork_server_of(launcher)
    os.kill(first, signal.SIGSTOP)
    lose_patience(launcher)

    ending = run(["exit", 3])

    assert ending.exit_code == 3
    assert fork_server_of(launcher) != first
    assert start_ticks(first) is None


def test_a_fork_server_killed_while_a_child_trains_takes_it_along_which_is_a_crash(
    run: Run, launcher: WarmLauncher, directory: Path, seen: list[TrainingEvent]
) -> None:
    def kill_fork_server(event: TrainingEvent) -> None:
        seen.append(event)
        os.kill(fork_server_of(launcher), signal.SIGKILL)

    ending = run(SAY, ["wait"], on_event=kill_fork_server)

    assert ending == Ending(-signal.SIGKILL, was_asked=False, was_killed=False, log_tail="")
    assert run(["exit", 0]).exit_code == 0


def test_a_child_of_a_fork_server_that_hangs_is_still_killed(
    run: Run, launcher: WarmLauncher, seen: list[TrainingEvent]
) -> None:
    def stop_fork_server(event: TrainingEvent) -> None:
        os.kill(fork_server_of(launcher), signal.SIGSTOP)
        lose_patience(launcher)
        seen.append(event)

    ending = run(SAY, ["wait"], on_event=stop_fork_server, requested_signal=lambda: end_if(seen))

    assert (ending.exit_code, ending.was_killed) == (-signal.SIGKILL, True)


def lose_patience(launcher: WarmLauncher) -> None:
    """From now on, its present fork server must answer quickly."""
    assert launcher._fork_server is not None
    launcher._fork_server.prepare_s = launcher._fork_server.answer_s = 0.1


def test_without_a_fork_server_a_job_runs_all_the_same(
    run: Run, seen: list[TrainingEvent], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "worker"):
        endings = [run(SAY, prepare=[["exit", 1]]) for _ in range(MAX_FAILURES + 1)]

    assert [ending.exit_code for ending in endings] == [0] * (MAX_FAILURES + 1)
    assert seen == [EVENT] * (MAX_FAILURES + 1)
    messages = [record.message.split(":")[0] for record in caplog.records]
    assert messages == ["no warm start"] * MAX_FAILURES + ["no more warm starts are tried"]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        pytest.param([["thread"]], "2 threads run", id="a thread that a copy would lack"),
        pytest.param([["no such word"]], "the preparation failed", id="what cannot be prepared"),
        pytest.param([["raise", "SIGSEGV"]], "the fork server has died", id="a crash"),
        pytest.param([["exit", 0]], "the fork server has died", id="an end"),
    ],
)
def test_a_job_that_cannot_be_forked_is_started_cold(
    run: Run,
    launcher: WarmLauncher,
    caplog: pytest.LogCaptureFixture,
    prepare: list[list[Any]],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING, "worker"):
        ending = run(["exit", 3], prepare=prepare)

    assert ending.exit_code == 3
    assert reason in caplog.text
    assert launcher._fork_server is None


@pytest.mark.parametrize("nonsense", [b"{}x", b'{"what": "fork"}', b"\xff"])
def test_a_fork_server_that_talks_nonsense_is_replaced(
    run: Run, launcher: WarmLauncher, monkeypatch: pytest.MonkeyPatch, nonsense: bytes
) -> None:
    run(["exit", 0])
    first = fork_server_of(launcher)
    assert launcher._fork_server is not None
    control = launcher._fork_server._control

    class Nonsense:
        def __getattr__(self, name: str) -> Any:
            return getattr(control, name)

        def recv(self, _size: int) -> bytes:
            control.recv(65536)
            return nonsense

    launcher._fork_server._control = Nonsense()  # pyright: ignore[reportAttributeAccessIssue] - as one

    assert run(["exit", 3]).exit_code == 3
    assert fork_server_of(launcher) != first


@pytest.mark.parametrize(
    ("requested", "ending"),
    [
        (Signal.KILL, Ending(-signal.SIGKILL, was_asked=False, was_killed=True, log_tail="")),
        (
            Signal.SAVE_AND_STOP,
            Ending(-signal.SIGTERM, was_asked=True, was_killed=False, log_tail=""),
        ),
    ],
)
def test_signals_are_obeyed_while_the_job_is_prepared(
    run: Run, launcher: WarmLauncher, requested: Signal, ending: Ending
) -> None:
    """Loading a large base model may take a minute."""
    signals = iter([Signal.CONTINUE] * 3)

    assert run(SAY, prepare=[["wait"]], requested_signal=lambda: next(signals, requested)) == ending
    assert run(["exit", 0]).exit_code == 0


def test_a_child_whose_lock_cannot_be_written_down_is_ended(
    directory: Path, launcher: WarmLauncher, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["exit", 0])
    before = sorted(open_files(os.getpid()))
    pids: list[int] = []

    def fail(_lock: JobLock, pid: int) -> None:
        pids.append(pid)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JobLock, "name_holder", fail)
        with pytest.raises(OSError, match="No space"):
            launcher.run(directory, Watch(on_event=print, requested_signal=lambda: Signal.CONTINUE))

    assert start_ticks(pids[0]) is None
    assert run(["exit", 0]).exit_code == 0
    assert sorted(open_files(os.getpid())) == before


@pytest.fixture
def preloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Decides what fork servers do when they preload; returns the lock file that they share."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def script(*steps: list[Any]) -> Path:
        (tmp_path / "preload.json").write_text(json.dumps(steps))
        return tmp_path / "preload.lock"

    return script


def test_a_job_is_forked_from_the_process_that_has_preloaded(
    run: Run, launcher: WarmLauncher, preloading: Callable[..., Path], tmp_path: Path
) -> None:
    launcher.preload(preloading(["environment"]), is_busy=lambda: False)
    fork_server = fork_server_of(launcher)

    assert run(["exit", 3]).exit_code == 3

    assert fork_server_of(launcher) == fork_server
    assert (tmp_path / "environment").exists()


def test_only_one_worker_of_a_machine_preloads_at_a_time(
    launcher: WarmLauncher, preloading: Callable[..., Path]
) -> None:
    lock = preloading(["wait"])
    launcher.preload(lock, is_busy=lambda: False)  # which does not wait for it
    other = WarmLauncher("tests.stand_in_child", idle_s=60)

    other.preload(lock, is_busy=lambda: False)
    assert other._fork_server is None

    launcher.close()
    other.preload(lock, is_busy=lambda: False)
    assert other._fork_server is not None
    other.close()


@pytest.mark.parametrize("failure", [["no such word"], ["exit", 1], ["raise", "SIGSEGV"]])
def test_preloading_that_fails_costs_no_job_and_is_not_tried_again(
    run: Run, launcher: WarmLauncher, preloading: Callable[..., Path], failure: list[Any]
) -> None:
    lock = preloading(failure)
    launcher.preload(lock, is_busy=lambda: False)
    first = fork_server_of(launcher)
    wait_until(lambda: is_free(lock), within_s=END_S)

    launcher.preload(lock, is_busy=lambda: False)

    assert fork_server_of(launcher) == first
    assert run(["exit", 3]).exit_code == 3


def is_free(lock: Path) -> bool:
    descriptor = try_lock(lock)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def test_what_was_preloaded_is_given_back_when_no_job_comes(
    preloading: Callable[..., Path],
) -> None:
    launcher = WarmLauncher("tests.stand_in_child", idle_s=0.1)
    lock = preloading()
    launcher.preload(lock, is_busy=lambda: False)
    pid = fork_server_of(launcher)
    wait_until(lambda: start_ticks(pid) is None, within_s=END_S)

    launcher.preload(lock, is_busy=lambda: False)

    assert launcher._fork_server is None  # so its entry in the table of processes is free, too
    assert not psutil.pid_exists(pid)


def test_a_fork_server_that_preloads_ends_with_its_worker(
    preloading: Callable[..., Path], tmp_path: Path
) -> None:
    lock = preloading(["environment"], ["wait"])
    command = [sys.executable, "-c", PRELOADING_WORKER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as worker:
        assert worker.stdout is not None
        fork_server = int(worker.stdout.readline())
        wait_until((tmp_path / "environment").exists, within_s=END_S)

        worker.kill()

        wait_until(lambda: start_ticks(fork_server) is None, within_s=END_S)


PRELOADING_WORKER = """
import signal, sys
from pathlib import Path
from worker.launch.warm import WarmLauncher
launcher = WarmLauncher("tests.stand_in_child", idle_s=60)
launcher.preload(Path(sys.argv[1]), is_busy=lambda: False)
print(launcher._fork_server.pid, flush=True)
signal.pause()
"""

WORKER = """
import sys
from pathlib import Path
from tests.fakes import Watch
from worker.launch.launcher import Signal
from worker.launch.warm import WarmLauncher
WarmLauncher("tests.stand_in_child", idle_s=60).run(
    Path(sys.argv[1]),
    Watch(lambda event: print(event.message, flush=True), lambda: Signal.CONTINUE),
)
"""


def test_a_worker_that_is_killed_takes_fork_server_and_child_along(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "script.json").write_text(json.dumps([SAY, ["wait"]]))
    command = [sys.executable, "-c", WORKER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        child = holder_of(directory)
        fork_server = parent_of(child)
        assert parent_of(fork_server) == worker.pid

        worker.kill()

        for pid in (child, fork_server):
            wait_until(lambda pid=pid: start_ticks(pid) is None, within_s=END_S)


def test_a_fork_server_ends_with_the_thread_that_had_it(directory: Path) -> None:
    """Its worker's, which has no more use for it when it is told to stop."""
    directory.mkdir(parents=True)
    (directory / "script.json").write_text("[]")
    launcher = WarmLauncher("tests.stand_in_child", idle_s=60)
    worker = threading.Thread(
        target=lambda: launcher.run(
            directory, Watch(on_event=print, requested_signal=lambda: Signal.CONTINUE)
        )
    )
    worker.start()
    worker.join(60)

    wait_until(lambda: start_ticks(fork_server_of(launcher)) is None, within_s=END_S)
    launcher.close()


def test_a_fork_server_sees_no_secret_of_the_workers_environment(
    run: Run, launcher: WarmLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", "postgresql://user:secret@host/db")

    run(["exit", 0])

    assert b"secret" not in Path(f"/proc/{fork_server_of(launcher)}/environ").read_bytes()


@pytest.fixture
def beside(
    run: Run, launcher: WarmLauncher, tmp_path: Path
) -> Callable[..., tuple[Ending | None, Ending]]:
    """Run a check while a child of the launcher trains; returns how both end."""

    def beside(
        *script: list[Any],
        prepare: list[list[Any]] | None = None,
        requested_signal: Callable[[], Signal] = lambda: Signal.CONTINUE,
        on_event: Callable[[TrainingEvent], object] = print,
    ) -> tuple[Ending | None, Ending]:
        directory = tmp_path / "check" / "attempt-1"
        directory.mkdir(parents=True)
        (directory / "prepare.json").write_text(json.dumps(prepare or []))
        (directory / "script.json").write_text(json.dumps(script))
        checks: list[Ending | None] = []
        watcher = Watch(on_event=on_event, requested_signal=requested_signal)

        def check(_event: TrainingEvent) -> None:
            thread = threading.Thread(
                target=lambda: checks.append(
                    launcher.run_beside(directory, watcher, is_busy=lambda: True)
                )
            )
            thread.start()
            thread.join(END_S)

        training = run(SAY, ["exit", 5], on_event=check)
        return checks[0], training

    return beside


def test_a_check_beside_training_is_forked_from_the_same_process(
    beside: Callable[..., tuple[Ending | None, Ending]], launcher: WarmLauncher
) -> None:
    check, training = beside(["exit", 3])

    assert check is not None
    assert (check.exit_code, training.exit_code) == (3, 5)
    assert launcher._fork_server is not None
    assert not launcher._fork_server.has_children


def test_a_check_has_no_warm_start_while_nothing_trains(
    run: Run, launcher: WarmLauncher, directory: Path
) -> None:
    watcher = Watch(on_event=print, requested_signal=lambda: Signal.CONTINUE)
    assert launcher.run_beside(directory, watcher, is_busy=lambda: True) is None

    run(["exit", 0])

    assert launcher.run_beside(directory, watcher, is_busy=lambda: True) is None


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param([["no such word"]], id="it cannot be prepared"),
        pytest.param([["thread"]], id="it cannot be forked"),
    ],
)
def test_a_check_that_cannot_be_forked_leaves_the_training_alone(
    beside: Callable[..., tuple[Ending | None, Ending]], prepare: list[list[Any]]
) -> None:
    check, training = beside(["exit", 3], prepare=prepare)

    assert check is None
    assert training.exit_code == 5


def test_a_check_that_is_cancelled_while_it_is_prepared_leaves_the_training_alone(
    beside: Callable[..., tuple[Ending | None, Ending]],
) -> None:
    """The answer to its request arrives while another one waits for its own."""
    check, training = beside(prepare=[["delay", 0.5]], requested_signal=lambda: Signal.KILL)

    assert check is not None
    assert check.was_killed
    assert training.exit_code == 5


def test_a_check_that_dies_with_the_fork_server_has_not_crashed(
    beside: Callable[..., tuple[Ending | None, Ending]], launcher: WarmLauncher
) -> None:
    check, _ = beside(SAY, ["wait"], on_event=lambda _: launcher.close())

    assert check is not None
    assert check.was_killed
