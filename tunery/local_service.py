"""Start a Tunery of your own in the background, use it over HTTP, and stop it again.

    with LocalService(Path("data")) as service:
        client = OpenAI(base_url=service.base_url, api_key="not-needed")

The demo, the benchmarks and the tests start the service this way: see decision 0029. A program that
imports this module does not get `app` and `worker` on its import path.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tunery import service_root

START_S = 60.0
"""Default limit for the start of a process, in seconds; generous, as the machine may be busy."""

STOP_S = 40.0
"""Default limit for the end of a process, in seconds. A worker saves its running job first."""

LOG_TAIL_LINES = 15

_PR_SET_PDEATHSIG = 1
"""Linux, `prctl(2)`: the signal that a process gets when the thread that started it ends."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

_PREFIX = "TUNERY_"
_POLL_S = 0.05
_READY = {
    "api": r"running on http://\S+:(\d+)\D",
    "worker": r"worker ready",
    "sampler": r"sampler ready",
}


class ServiceError(Exception):
    """A process does not run as it should; the message ends with its log."""


def end_with_parent() -> None:
    """In a new process: stop in good order when the process that started it is killed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class LoggedProcess:
    """A program whose output goes to a log file. It may be started again after it has ended.

    Args:
        command: the program and its arguments.
        log: receives standard output and standard error; every start appends to it.
        cwd: working directory.
        environment: all environment variables.
    """

    def __init__(
        self, command: Sequence[str | Path], *, log: Path, cwd: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = command
        self._log = log
        self._cwd = cwd
        self._environment = environment
        self._log_start = 0
        self._started: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._started is not None and self._started.poll() is None

    def start(self) -> None:
        """Start the program without waiting. Call `wait_for` to wait until it is ready."""
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._started = subprocess.Popen(  # noqa: S603 - the caller's own program
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the caller alone, which stops it
                preexec_fn=end_with_parent,  # noqa: PLW1509 - one call of the system, no locks
            )

    def log(self) -> str:
        """Everything logged so far, by all starts."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def log_tail(self) -> str:
        """The last lines of the log, indented."""
        return "\n".join(f"    {line}" for line in self.log().splitlines()[-LOG_TAIL_LINES:])

    def wait_for(self, pattern: str, *, within_s: float = START_S) -> re.Match[str]:
        """Wait until the log of the last start matches the pattern.

        Raises:
            ServiceError: the process has ended, or the time is up.
        """
        deadline = time.monotonic() + within_s
        while True:
            was_running = self.is_running  # asked first, so that the last words of it are read
            log = self._log.read_bytes()[self._log_start :].decode("utf-8", "replace")
            if match := re.search(pattern, log):
                return match
            if not was_running:
                self.check()
            if time.monotonic() > deadline:
                raise self._error(f"was not ready within {within_s:.0f} s")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Make sure that the process runs.

        Raises:
            ServiceError: it has ended.
        """
        if not self.is_running:
            raise self._error(f"ended with exit code {self._process.returncode}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._process.send_signal(number)

    def wait(self, *, within_s: float = STOP_S) -> int:
        """Wait for the end of the process. Returns its exit code.

        Raises:
            ServiceError: it did not end in time, and was killed.
        """
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise self._error(f"did not end within {within_s:.0f} s and was killed") from error

    def stop(self, how: signal.Signals = signal.SIGTERM, *, within_s: float = STOP_S) -> int:
        """Send a signal and wait for the end of the process, as `wait` does."""
        self.send(how)
        return self.wait(within_s=within_s)

    def kill(self) -> None:
        """End the process at once, with all it has started that is still in its group."""
        if self.is_running:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def _process(self) -> "subprocess.Popen[bytes]":
        assert self._started is not None, f"{self._log.stem} was never started"  # noqa: S101
        return self._started

    def _error(self, what: str) -> ServiceError:
        tail = self.log_tail()
        return ServiceError(f"The process {self._log.stem} {what}. Its log ends:\n{tail}")


class LocalService:
    """The API, its workers and a sampler, on one data directory and on a free port of 127.0.0.1.

    A context manager: in the block all processes are ready, after it all have ended. They are
    called `api`, `worker-1`, `worker-2` and so on, and each logs to a file of that name.

    Args:
        data_dir: made if it does not exist.
        settings: settings by name, without the prefix: `{"lease_s": "5"}`. Those in this process's
            environment do not apply. Address, log level and data directory cannot be set.
        workers: number of worker processes.
        program: a `tunery` command to run, instead of the code around this module.
        worker_module: module to run as worker, instead of `worker`.
        has_sampler: whether models can be asked, by a process called `sampler`.
        cwd: working directory, where the processes read `.env`; the data directory by default.
        log_dir: directory of the logs; the data directory by default.
        start_within_s: limit for the start of each process. A worker that misses its default base
            model installs it first.
    """

    def __init__(
        self,
        data_dir: Path,
        settings: Mapping[str, str] | None = None,
        *,
        workers: int = 1,
        program: Sequence[str | Path] | None = None,
        worker_module: str = "worker",
        has_sampler: bool = False,
        cwd: Path | None = None,
        log_dir: Path | None = None,
        start_within_s: float = START_S,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self._start_within_s = start_within_s
        own = {"data_dir": str(self.data_dir), "host": "127.0.0.1", "port": "0"}
        own["log_level"] = "info"  # at which processes say that they are ready
        self._environment = _environment({**(settings or {}), **own}, is_ours=program is None)
        data_dir.mkdir(parents=True, exist_ok=True)
        python = [sys.executable, "-P", "-m"]
        api = [*program, "api"] if program else [*python, "app"]
        worker = [*program, "worker"] if program else [*python, worker_module]
        self.worker_names = [f"worker-{number}" for number in range(1, workers + 1)]
        commands = {"api": api, **dict.fromkeys(self.worker_names, worker)}
        if has_sampler:
            commands["sampler"] = [*program, "sampler"] if program else [*python, "worker.sampling"]
        self.processes = {
            name: LoggedProcess(
                command,
                log=(log_dir or data_dir) / f"{name}.log",
                cwd=cwd or data_dir,
                environment=self._environment,
            )
            for name, command in commands.items()
        }

    def __enter__(self) -> Self:
        with ExitStack() as unless_ready:  # Ctrl-C, too, leaves nothing running
            unless_ready.push(self)
            self.start_ended()
            for name in self.processes:
                self._await_ready(name)
            unless_ready.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        except ServiceError:
            if kind is None:
                raise
        finally:
            for process in self.processes.values():
                process.kill()

    @property
    def url(self) -> str:
        """Address of the API. It stays the same when the API is started again."""
        return f"http://127.0.0.1:{self._environment[f'{_PREFIX}PORT']}"

    @property
    def base_url(self) -> str:
        """Address for OpenAI's clients."""
        return f"{self.url}/v1"

    def start(self, name: str) -> None:
        """Start a process that has ended, and wait until it is ready."""
        self.processes[name].start()
        self._await_ready(name)

    def start_ended(self) -> None:
        """Start every process that does not run, without waiting until it is ready."""
        for process in self.processes.values():
            if not process.is_running:
                process.start()

    def check(self) -> None:
        """Make sure that all processes run, as `LoggedProcess.check` does."""
        for process in self.processes.values():
            process.check()

    def stop(self) -> None:
        """Stop workers and sampler at once, and then the API, which workers may need until then.

        Raises:
            ServiceError: a process did not end in time, and was killed.
        """
        others = [name for name in self.processes if name != "api"]
        for names in (others, ["api"]):
            running = [self.processes[name] for name in names if self.processes[name].is_running]
            for process in running:
                process.send(signal.SIGTERM)
                process.send(signal.SIGCONT)
            for process in running:
                process.wait()

    def _await_ready(self, name: str) -> None:
        kind = name.partition("-")[0]
        match = self.processes[name].wait_for(_READY[kind], within_s=self._start_within_s)
        if kind == "api":  # the next start takes the same port, so that clients find it
            self._environment[f"{_PREFIX}PORT"] = match[1]


def _environment(settings: Mapping[str, str], *, is_ours: bool) -> dict[str, str]:
    """This process's environment with these settings and no others.

    Args:
        is_ours: whether Python finds the code around this module first. Otherwise it finds only
            what is installed.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_PREFIX)}
    inherited = environment.pop("PYTHONPATH", "")
    if is_ours:
        paths = [str(service_root()), inherited]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment | {f"{_PREFIX}{name.upper()}": text for name, text in settings.items()}
