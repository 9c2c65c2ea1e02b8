"""Start a Tunery of your own in the background, use it over HTTP, and stop it again.

    with LocalService(Path("data")) as service:
        client = OpenAI(base_url=service.base_url, api_key="not-needed")

The demo, the benchmarks and the tests start the service this way: see decision 0029. A program that
imports this module does not get `app` and `worker` on its import path.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tunery import service_root
from tunery.logged_process import START_S, LoggedProcess, ServiceError

_PREFIX = "TUNERY_"
_READY = {
    "api": r"running on http://\S+:(\d+)\D",
    "worker": r"worker ready",
    "sampler": r"sampler ready",
}


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

    @property
    def environment(self) -> Mapping[str, str]:
        """All environment variables of the processes."""
        return self._environment

    def configure(self, settings: Mapping[str, str]) -> None:
        """Change settings of the processes that are started from now on."""
        self._environment |= _variables(settings)

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
    return environment | _variables(settings)


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"{_PREFIX}{name.upper()}": text for name, text in settings.items()}
