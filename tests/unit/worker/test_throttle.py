"""A process that is stopped for most of the time while a job trains on the machine."""

import subprocess
import sys
import time
from collections.abc import Generator

import psutil
import pytest

from tests.waiting import wait_until
from worker.launch.throttle import RUNS_S, STOPS_S, throttled

ROUNDS = 2
TRIES = 5
BUSY = "while True: pass"


@pytest.fixture
def busy() -> Generator[psutil.Process]:
    """A process that computes for ever, and leads its group."""
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield psutil.Process(process.pid)
        process.kill()


def computed_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def computes_little(process: psutil.Process) -> bool:
    """Whether a process computes little in the next rounds."""
    before = computed_s(process)
    time.sleep(ROUNDS * (RUNS_S + STOPS_S))
    return computed_s(process) - before <= (ROUNDS + 1) * 2 * RUNS_S


def test_it_computes_little_while_the_machine_is_busy(busy: psutil.Process) -> None:
    with throttled(busy.pid, lambda: True):
        time.sleep(RUNS_S + STOPS_S)  # it may have been starting
        assert any(computes_little(busy) for _ in range(TRIES))  # what stops it may wake late

    assert busy.status() != psutil.STATUS_STOPPED


def test_it_is_never_stopped_while_the_machine_is_idle(busy: psutil.Process) -> None:
    asked: list[str] = []

    def is_busy() -> bool:
        asked.append(busy.status())
        return False

    with throttled(busy.pid, is_busy):
        while len(asked) < ROUNDS:
            time.sleep(RUNS_S)

    assert psutil.STATUS_STOPPED not in asked


def test_it_is_not_stopped_before_it_may_be(busy: psutil.Process) -> None:
    asked: list[str] = []

    def may_stop() -> bool:
        asked.append(busy.status())
        return len(asked) == ROUNDS

    with throttled(busy.pid, lambda: True, may_stop=may_stop):
        wait_until(lambda: busy.status() == psutil.STATUS_STOPPED, within_s=30)

    assert len(asked) == ROUNDS
    assert psutil.STATUS_STOPPED not in asked


def test_its_processor_time_is_measured_and_not_the_time_in_which_it_was_stopped(
    busy: psutil.Process,
) -> None:
    with throttled(busy.pid, lambda: True) as meter:
        while meter.processor_s == 0:
            time.sleep(RUNS_S)
        time.sleep(RUNS_S + STOPS_S)
        assert 0 < meter.processor_s <= computed_s(busy)


def test_a_process_that_ends_meanwhile_is_no_error() -> None:
    with subprocess.Popen(["/bin/true"], start_new_session=True) as process:
        process.wait()
        with throttled(process.pid, lambda: True):
            time.sleep(2 * RUNS_S)
