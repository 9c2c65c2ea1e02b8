"""The process of one tracker, as the worker sees it: it answers within a time, or is killed."""

import os
import select
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from app.core.machine.subprocesses import python_module, with_import_path
from worker.trackers.messages import REPLIES, Done, Failed, Opened, OpenRun, Request

_PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
"""Variables that the process gets. No setting of the service is among them, so no password is."""

_MAX_REPLY_BYTES = 64 * 1024

_CHECK_S = 0.5
"""Interval at which a wait for a reply checks how much time is left."""


class TrackerError(Exception):
    """The tracker cannot be used at the moment. The message is fit for users.

    Attributes:
        detail: what the library says, for the operator.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class TrackerProcess:
    """A process that is killed at the end of the `with` block, with all that it has started."""

    def __init__(self) -> None:
        self._replies = b""

    def __enter__(self) -> Self:
        self._home = TemporaryDirectory(prefix="tunery-tracker-", ignore_cleanup_errors=True)
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        own = {"HOME": self._home.name, "TMPDIR": self._home.name}
        self._process = subprocess.Popen(  # noqa: S603
            python_module("worker.trackers"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=self._home.name,
            env=with_import_path(passed_on) | own,
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._home.cleanup()

    def open(self, request: OpenRun, *, seconds_left: Callable[[], float]) -> Opened:
        """Open the run of a job.

        Args:
            request: the job, and where its run belongs.
            seconds_left: returns the time that is left for the reply. It may change.

        Raises:
            TrackerError: the tracker cannot be used, or there is no reply in time.
        """
        reply = self._ask(request, seconds_left)
        if not isinstance(reply, Opened):
            raise TypeError(reply.kind)
        return reply

    def ask(self, request: Request, *, seconds_left: Callable[[], float]) -> None:
        """Have something done.

        Raises:
            TrackerError: the tracker cannot be used, or there is no reply in time.
        """
        self._ask(request, seconds_left)

    def _ask(self, request: OpenRun | Request, seconds_left: Callable[[], float]) -> Opened | Done:
        assert self._process.stdin is not None  # noqa: S101 - for the type
        try:
            self._process.stdin.write(request.model_dump_json().encode() + b"\n")
            reply = REPLIES.validate_json(self._read_line(seconds_left))
        except (BrokenPipeError, ValidationError) as error:
            raise TrackerError("its process has failed", str(error)) from None
        if isinstance(reply, Failed):
            raise TrackerError(reply.reason, reply.detail)
        return reply

    def _read_line(self, seconds_left: Callable[[], float]) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - for the type
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._replies:
            left_s = seconds_left()
            if left_s <= 0:
                raise TrackerError("it does not answer")
            if not select.select([descriptor], [], [], min(left_s, _CHECK_S))[0]:
                continue
            chunk = os.read(descriptor, _MAX_REPLY_BYTES)
            if not chunk or len(self._replies) > _MAX_REPLY_BYTES:
                raise TrackerError("its process has failed")
            self._replies += chunk
        line, _, self._replies = self._replies.partition(b"\n")
        return line
