"""The keeper kills a process that is of no use any more, and starts another one."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.core.base_models import MODELS_NAME
from app.core.compute_choices import sampler_memory, sampling_memory
from app.core.settings import Settings
from tests.waiting import wait_until
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import NO_SANDBOX
from worker.sampling.child import LINES_A_MINUTE, Child, LogLimit, Patience
from worker.sampling.keeper import Keeper
from worker.sampling.serving.options import ServingOptions

PATIENCE_S = 30.0


@pytest.fixture
def directory(settings: Settings) -> Path:
    """Where the process writes down what it gets."""
    settings.sampler_dir.mkdir(parents=True)
    return settings.sampler_dir


@contextmanager
def keeping(
    settings: Settings, how: str, *, silence_s: float = PATIENCE_S, sandbox: str = "off"
) -> Generator[None]:
    """Run a keeper of processes that go wrong in this way. It has to stop when it is told to."""
    (settings.sampler_dir / "how").write_text(how)
    stops, stop = os.pipe()
    changed = settings.model_copy(update={"sandbox": sandbox, "training_device": "cuda"})
    keeper = Keeper(changed, stops=stops, module="tests.standin_serving", silence_s=silence_s)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join(PATIENCE_S)
        os.close(stops)
    assert not thread.is_alive()


def started(directory: Path) -> list[int]:
    """Ids of the processes that have been started."""
    path = directory / "started"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("how", ["hangs", "closes its output"])
def test_a_process_that_is_of_no_use_is_replaced(
    settings: Settings, directory: Path, how: str
) -> None:
    with keeping(settings, how, silence_s=0.5 if how == "hangs" else PATIENCE_S):
        wait_until(lambda: len(started(directory)) > 1, within_s=PATIENCE_S)

        assert not psutil.pid_exists(started(directory)[0])


def test_a_process_leaves_nothing_to_the_next_one(settings: Settings, directory: Path) -> None:
    process = directory / "process"
    with keeping(settings, "waits"):
        wait_until(lambda: started(directory), within_s=PATIENCE_S)
        (process / "code").write_text("")
    with keeping(settings, "waits"):
        wait_until(lambda: len(started(directory)) > 1, within_s=PATIENCE_S)

    assert not (process / "code").exists()


@pytest.mark.parametrize(
    ("how", "said"), [("ends", "ended with exit code 3"), ("is killed", "ended with signal 40")]
)
def test_the_log_says_how_a_process_has_ended(
    settings: Settings, directory: Path, caplog: pytest.LogCaptureFixture, how: str, said: str
) -> None:
    with caplog.at_level(logging.ERROR), keeping(settings, how):
        wait_until(lambda: said in caplog.text, within_s=PATIENCE_S)

    assert started(directory)


def test_a_process_that_cannot_be_started_is_tried_again(
    settings: Settings, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = settings.data_dir / MODELS_NAME
    in_the_way.rename(settings.data_dir / "aside")
    in_the_way.write_text("")
    with caplog.at_level(logging.ERROR), keeping(settings, "waits"):
        wait_until(lambda: "cannot run" in caplog.text, within_s=PATIENCE_S)
        in_the_way.unlink()
        wait_until(lambda: started(directory), within_s=PATIENCE_S)


def test_a_process_that_was_paused_with_the_keeper_does_not_hang() -> None:
    an_hour_s = 3600.0
    patience = Patience(0.0, 30.0)

    assert not patience.is_over(an_hour_s)
    assert not patience.is_over(an_hour_s + 1)
    assert any(patience.is_over(an_hour_s + look / 4) for look in range(4, 130))


def test_a_process_that_cannot_be_started_leaves_no_descriptor_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/missing")
    before = psutil.Process().num_fds()
    with (
        socket.socket(socket.AF_UNIX) as listener,
        pytest.raises(FileNotFoundError),
        Child.started(settings, NO_SANDBOX, listener),
    ):
        raise AssertionError

    assert psutil.Process().num_fds() == before


def test_models_are_sampled_on_the_processor_also_where_a_gpu_trains(
    settings: Settings, directory: Path
) -> None:
    with keeping(settings, "waits"):
        wait_until(lambda: started(directory), within_s=PATIENCE_S)

    options = ServingOptions.model_validate_json((directory / "options").read_bytes())
    assert options.compute.device == "cpu"


def test_the_memory_of_the_process_is_limited_to_what_jobs_do_not_count_on(
    settings: Settings, directory: Path
) -> None:
    with keeping(settings, "waits", sandbox="auto"):
        wait_until(lambda: started(directory), within_s=PATIENCE_S)

    confinement = Confinement.model_validate_json((directory / "confinement").read_bytes())
    of_mapped_files = 2 * sampling_memory(settings)
    assert confinement.limits.memory_bytes == sampler_memory(settings) + of_mapped_files


def test_the_log_goes_on_in_the_next_minute() -> None:
    limit = LogLimit()

    logged = [limit.allows_line(now_s) for now_s in [100.0] * (LINES_A_MINUTE + 50)]

    assert logged.count(True) == LINES_A_MINUTE
    assert not limit.allows_line(159.0)
    assert limit.allows_line(160.0)
