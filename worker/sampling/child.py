"""The contained process that answers requests, as the keeper sees it."""

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Self

from app.core.base_models import MODELS_NAME
from app.core.compute_choices import compute_choices, sampler_memory, sampling_memory
from app.core.job.child.child_text import clean
from app.core.job.child.job_spec import BASE_MODEL_NAME, MACHINE_CACHE_NAME
from app.core.machine.subprocesses import python_module
from app.core.sampling.messages import MAX_SILENCE_S
from app.core.settings import Settings
from app.core.storage.trees import remove_tree
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import child_environment
from worker.sampling.serving.options import ALIVE, READY, RESTS, TRAINS, ServingOptions

logger = logging.getLogger(__name__)

MODULE = "worker.sampling.serving"
_START_S = 300.0
"""Time in which it loads its libraries, in seconds."""
_EXIT_S = 2.0
"""Time in which it ends once it has closed its output, in seconds."""
MAX_LOOK_S = 1.0
"""The keeper looks more often than this, in seconds, unless it could not run for a while."""

_MINUTE_S = 60.0
_MAX_LINE = 2000
LINES_A_MINUTE = 100
"""Lines that a child may write to the log in a minute, so that it cannot fill the disk."""


class Child:
    """A running process. Make it with `started`.

    Attributes:
        output: descriptor that can be read when the child has said something, or has ended.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", output: int, control: int, *, silence_s: float
    ) -> None:
        self._process = process
        self.output = output
        self._control = control
        self._unfinished = b""
        self._log_limit = LogLimit()
        self._silence_s = silence_s
        self._patience = Patience(time.monotonic(), _START_S)

    @classmethod
    @contextmanager
    def started(
        cls,
        settings: Settings,
        sandbox: Sandbox,
        listener: socket.socket,
        *,
        module: str = MODULE,
        silence_s: float = MAX_SILENCE_S,
    ) -> Generator[Self]:
        """Start the process, and kill it after the block with all that it has started.

        Args:
            settings: the settings of the service.
            sandbox: contains it.
            listener: the socket that the API connects to.
            module: what it runs.
            silence_s: time after which it hangs if it does not say `ALIVE`, in seconds.
        """
        directory = _make_directory(settings)
        options = _options(settings, directory)
        with sandbox.confine(directory, module) as confinement:
            arguments = [options.model_dump_json()]
            if confinement is not None:
                adapted = _adapt(confinement, options, memory_bytes=sampler_memory(settings))
                arguments.append(adapted.model_dump_json())
            with _pipe() as (its_control, control), _pipe() as (output, its_output):
                descriptors = (listener.fileno(), its_control.fileno())
                process = subprocess.Popen(  # noqa: S603 - our own module
                    python_module(module, *map(str, descriptors), *arguments),
                    cwd=directory,
                    env=child_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=its_output,
                    stderr=its_output,
                    pass_fds=descriptors,
                    start_new_session=True,  # a Ctrl-C in a terminal is for the keeper to handle
                )
                its_control.close()
                its_output.close()
                os.set_blocking(output.fileno(), False)
                child = cls(process, output.fileno(), control.fileno(), silence_s=silence_s)
                try:
                    yield child
                finally:
                    child.kill()

    def tell(self, *, trains: bool) -> None:
        """Tell it whether a job trains on this machine."""
        with suppress(BrokenPipeError):  # it has just died
            os.write(self._control, TRAINS if trains else RESTS)

    def relay(self) -> bool:
        """Log what it has said since the last call. Returns whether it still runs."""
        try:
            said = os.read(self.output, 64 * 1024)
        except BlockingIOError:
            return True
        *lines, self._unfinished = (self._unfinished + said).split(b"\n")
        self._unfinished = self._unfinished[-_MAX_LINE:]
        for line in lines:
            self._log(line)
        return bool(said)

    def hangs(self) -> bool:
        """Whether it has not said for too long that its threads make progress."""
        return self._patience.is_over(time.monotonic())

    def exit_code(self) -> int:
        """The exit code of the process that has closed its output. It is killed if it goes on."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_EXIT_S)
        return self.kill()

    def kill(self) -> int:
        """Kill it, with all that it has started. Returns its exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _log(self, line: bytes) -> None:
        text = clean(line[:_MAX_LINE].decode("utf-8", "replace"))
        if text in (READY, ALIVE):
            self._patience = Patience(time.monotonic(), self._silence_s)
        if text != ALIVE and self._log_limit.allows_line(time.monotonic()):
            logger.info("%s", "sampler ready" if text == READY else text)


class Patience:
    """Time to wait for something, in seconds.

    It does not run on while this process cannot run, as in a container that is paused: what is
    waited for may then not run either.
    """

    def __init__(self, now_s: float, left_s: float) -> None:
        self._looked_s = now_s
        self._left_s = left_s

    def is_over(self, now_s: float) -> bool:
        """Whether none is left. Call it at least every `MAX_LOOK_S`."""
        self._left_s -= min(now_s - self._looked_s, MAX_LOOK_S)
        self._looked_s = now_s
        return self._left_s < 0


class LogLimit:
    """Limits the lines of each minute."""

    def __init__(self) -> None:
        self._ends_at_s = 0.0
        self._lines = 0

    def allows_line(self, now_s: float) -> bool:
        """Count a line that comes at this time. Returns whether it may be logged."""
        if now_s >= self._ends_at_s:
            self._ends_at_s, self._lines = now_s + _MINUTE_S, 0
        self._lines += 1
        if self._lines == LINES_A_MINUTE + 1:
            logger.warning("more lines of the sampler are left out until this minute is over")
        return self._lines <= LINES_A_MINUTE


@contextmanager
def _pipe() -> Generator[tuple[FileIO, FileIO]]:
    """The end of a pipe to read from, and the one to write to."""
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb", buffering=0) as reads,
        os.fdopen(writing, "wb", buffering=0) as writes,
    ):
        yield reads, writes


def _make_directory(settings: Settings) -> Path:
    """Make its working directory, with links to what it may read, as jobs have them."""
    directory = settings.sampler_dir.resolve() / "process"
    remove_tree(directory.parent, directory.name)  # an earlier process may have left code there
    directory.mkdir(parents=True, exist_ok=True)
    models = settings.data_dir / MODELS_NAME
    models.mkdir(exist_ok=True)
    for name, target in (
        (BASE_MODEL_NAME, models),
        (MACHINE_CACHE_NAME, settings.machine_cache_dir),
    ):
        link = directory / name
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    return directory


def _options(settings: Settings, directory: Path) -> ServingOptions:
    return ServingOptions(
        mode="shared" if settings.sampling == "shared" else "idle",
        memory_bytes=sampling_memory(settings),
        queue=settings.sampling_queue,
        threads=settings.resolved_sampling_threads,
        models=(directory / BASE_MODEL_NAME).resolve(),
        speeds=(directory / MACHINE_CACHE_NAME).resolve(),
        compute=compute_choices(settings).model_copy(update={"device": "cpu"}),
    )


def _adapt(confinement: Confinement, options: ServingOptions, *, memory_bytes: int) -> Confinement:
    """Contain it as a training process, but for its memory and for base models that are links."""
    # The kernel also counts the mapped files of a base model, though they take no memory of the
    # process. In another dtype they are up to twice as large as the model.
    most = memory_bytes + 2 * options.memory_bytes
    limits = confinement.limits.model_copy(update={"memory_bytes": most})
    linked = (path.resolve() for path in options.models.iterdir() if path.is_symlink())
    readable = (*confinement.readable, *linked)
    return confinement.model_copy(update={"limits": limits, "readable": readable})
