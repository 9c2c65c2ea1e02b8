"""The contained process that answers requests, as the keeper sees it."""

import logging
import os
import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from app.core.base_models import MODELS_NAME
from app.core.compute_choices import compute_choices, sampling_memory
from app.core.job.child_text import clean
from app.core.job.training_config import BASE_MODEL_NAME, MACHINE_CACHE_NAME
from app.core.machine.subprocesses import python_module
from app.core.settings import Settings
from worker.launch.sandbox.confinement import Confinement
from worker.launch.sandbox.sandbox import Sandbox
from worker.launch.supervision import child_environment
from worker.sampling.serving.options import READY, RESTS, TRAINS, ServingOptions

logger = logging.getLogger(__name__)

_MODULE = "worker.sampling.serving"
_MORE_BYTES = 2 * 1024**3
"""Memory of libraries and of a step, beyond twice the limit of what is loaded: a base model in
another dtype than its files is there twice while it is read."""
_MAX_LINE = 2000
_MAX_LINES = 1000
"""Lines that a child may write to the log, so that it cannot fill the disk."""


class Child:
    """A running process. Make it with `started`.

    Attributes:
        output: descriptor that can be read when the child has said something, or has ended.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", output: int, control: int) -> None:
        self._process = process
        self.output = output
        self._control = control
        self._unfinished = b""
        self._lines_left = _MAX_LINES

    @classmethod
    @contextmanager
    def started(
        cls, settings: Settings, sandbox: Sandbox, listener: socket.socket
    ) -> Generator[Self]:
        """Start the process, and kill it after the block with all that it has started."""
        directory = _make_directory(settings)
        options = _options(settings, directory)
        with sandbox.confine(directory, _MODULE) as confinement:
            arguments = [options.model_dump_json()]
            if confinement is not None:
                arguments.append(_adapt(confinement, options).model_dump_json())
            its_control, control = os.pipe()
            output, its_output = os.pipe()
            descriptors = (listener.fileno(), its_control)
            try:
                process = subprocess.Popen(  # noqa: S603 - our own module
                    python_module(_MODULE, *map(str, descriptors), *arguments),
                    cwd=directory,
                    env=child_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=its_output,
                    stderr=its_output,
                    pass_fds=descriptors,
                    start_new_session=True,  # a Ctrl-C in a terminal is for the keeper to handle
                )
            finally:
                os.close(its_control)
                os.close(its_output)
            os.set_blocking(output, False)
            try:
                yield cls(process, output, control)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                os.close(output)
                os.close(control)

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

    def exit_code(self) -> int:
        """Wait for the end of the process that has closed its output."""
        return self._process.wait()

    def _log(self, line: bytes) -> None:
        text = clean(line[:_MAX_LINE].decode("utf-8", "replace"))
        if text == READY:
            logger.info("sampler ready")
        elif self._lines_left:
            self._lines_left -= 1
            logger.info("%s", text)


def _make_directory(settings: Settings) -> Path:
    """Make its working directory, with links to what it may read, as jobs have them."""
    directory = settings.sampler_dir.resolve() / "process"
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
        compute=compute_choices(settings),
    )


def _adapt(confinement: Confinement, options: ServingOptions) -> Confinement:
    """Contain it as a training process, but for its memory and for base models that are links."""
    limits = confinement.limits
    if limits.memory_bytes is not None:
        most = 2 * options.memory_bytes + _MORE_BYTES
        limits = limits.model_copy(update={"memory_bytes": most})
    linked = (path.resolve() for path in options.models.iterdir() if path.is_symlink())
    readable = (*confinement.readable, *linked)
    return confinement.model_copy(update={"limits": limits, "readable": readable})
