"""Asks Ray through a process that may die with it: see `worker.dispatch.ray_driver`."""

import json
import os
import selectors
import subprocess
import threading
from typing import Any

from app.core.clock import steady_s
from app.core.machine.subprocesses import python_module, with_import_path

CONNECT_S = 30.0
"""Time in which Ray's libraries are loaded and the head has answered, in seconds."""

ANSWER_S = 10.0
"""Time in which Ray answers a question, in seconds. It takes milliseconds if there is a head."""

AGAIN_S = 5.0
"""Time for which Ray is not asked again after it has not answered, in seconds, so that whoever asks
can do other things meanwhile."""

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""Environment variables that the process inherits, besides those of Ray: no address, no secret."""


class RayAwayError(Exception):
    """Ray could not be asked. What was asked for may have been done or not."""


class RayConnection:
    """A connection to Ray. It is made when something is asked, and made again after it was lost.

    Args:
        address: address of the head, or `auto` for that of a node on this machine.
        node_module: module that runs attempts on the nodes.
    """

    def __init__(self, address: str, node_module: str) -> None:
        self._command = python_module("worker.dispatch.ray_driver", address, node_module)
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._lock = threading.Lock()
        self._session = ""
        self._not_before_s = 0.0

    @property
    def session(self) -> str:
        """Name of the cluster since its head was started. Empty before the first connection."""
        return self._session

    def ask(self, call: str, **arguments: object) -> Any:
        """Call a method of `Driver` with these arguments, and return its result.

        Raises:
            RayAwayError: there was no answer in time, or Ray has refused.
        """
        request = json.dumps({"call": call, **arguments}).encode() + b"\n"
        with self._lock:
            if steady_s() < self._not_before_s:
                raise RayAwayError("Ray did not answer a moment ago")
            if self._process is None or self._process.poll() is not None:
                self._connect()
            return self._exchange(request, within_s=ANSWER_S)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _connect(self) -> None:
        self._end()
        passed_on = {
            name: text
            for name, text in os.environ.items()
            if name in _PASSED_ON or name.startswith("RAY_")
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # pages of what Ray's libraries log when the head is lost
            env=with_import_path(passed_on) | {"RAY_USAGE_STATS_ENABLED": "0"},
            cwd="/",  # Ray puts it on the import path of every node
            start_new_session=True,
        )
        self._session = self._exchange(b"", within_s=CONNECT_S)

    def _exchange(self, request: bytes, *, within_s: float) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RayAwayError("there is no connection")
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answer = json.loads(self._read_line(process.stdout.fileno(), within_s))
        except (OSError, ValueError, TimeoutError) as error:
            self._end()  # an answer that comes late would be taken for that of the next question
            self._not_before_s = steady_s() + AGAIN_S
            raise RayAwayError(str(error) or type(error).__name__) from error
        if "error" in answer:
            raise RayAwayError(answer["error"])
        return answer["result"]

    def _read_line(self, source: int, within_s: float) -> bytes:
        deadline_s = steady_s() + within_s
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(deadline_s - steady_s()):
                    raise TimeoutError(f"Ray has not answered in {within_s:.0f} s")
                received = os.read(source, 65_536)
                if not received:
                    raise ConnectionError("the process that is connected to Ray has ended")
                self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _end(self) -> None:
        self._received = b""
        if self._process is None:
            return
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was written to it and not read
                    continue
        self._process.wait()
        self._process = None
