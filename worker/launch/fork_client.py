"""Starts a fork server, talks to it, and watches the child that it forks."""

import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError

from app.core.machine.subprocesses import python_module
from worker.launch.fork_protocol import MAX_MESSAGE_BYTES, Answer, Request, What
from worker.launch.launcher import SIGNAL_POLL_INTERVAL_S
from worker.launch.sandbox.confinement import Confinement
from worker.launch.supervision import child_environment

PREPARE_S = 600.0
"""Time limit for loading the libraries and the base model, in seconds. It is long because a model
may be large and a disk slow; a user can cancel the job meanwhile."""

ANSWER_S = 30.0
"""Time limit for every other request, in seconds. They take milliseconds."""


class ForkServerError(Exception):
    """The fork server has died, does not answer, or refuses. It cannot be used any more."""


class ForkClient:
    """Starts a fork server and sends requests to it. Two threads may do so at the same time.

    Attributes:
        has_been_ended: whether `end` was called, which kills the children.
        prepare_s: time limit for loading the libraries and the base model, in seconds.
        answer_s: time limit for every other request, in seconds.

    Raises:
        ForkServerError: the fork server could not be started.
    """

    def __init__(self, module: str, *, idle_s: float) -> None:
        self.has_been_ended = False
        self.prepare_s = PREPARE_S
        self.answer_s = ANSWER_S
        self._asking = threading.Lock()
        self._requests = itertools.count(1)
        self._children: set[ForkedChild] = set()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answers = select.poll()
        self._answers.register(self._control, select.POLLIN)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    python_module("worker.launch.fork_server", module, str(idle_s)),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=child_environment(),
                    start_new_session=True,  # a Ctrl-C in a terminal is for the worker to handle
                )
        except OSError as error:
            self._control.close()
            raise ForkServerError(f"the fork server cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_children(self) -> bool:
        """Whether it has children. Then it has the libraries in memory, and answers at once."""
        return bool(self._children)

    @property
    def has_retired(self) -> bool:
        """Whether the fork server has ended because it was idle for too long."""
        return self._process.poll() == 0

    def preload(self, *, lock: int) -> None:
        """Begin to load what every job needs. The next request waits until that is done.

        Args:
            lock: descriptor that the fork server holds until it has loaded everything.

        Raises:
            ForkServerError: the fork server has died.
        """
        try:
            with self._asking:
                message = self._request("preload").model_dump_json().encode()
                socket.send_fds(self._control, [message], [lock])
        except OSError as error:
            raise ForkServerError(f"the fork server has died: {error}") from error

    def prepare(self, directory: Path, *, while_waiting: Callable[[], object]) -> None:
        """Load what the job in this directory needs, unless that is loaded already.

        Args:
            while_waiting: called regularly. If it raises, the exception reaches the caller, and
                the fork server is still busy.

        Raises:
            ForkServerError: it could not be done.
        """
        self._ask(
            self._request("prepare", directory=directory.resolve()),
            within_s=self.prepare_s,
            while_waiting=while_waiting,
        )

    def fork(
        self, directory: Path, confinement: Confinement | None, *, log: int, lock: int
    ) -> "ForkedChild":
        """Start a child that trains the job in this directory, which must be prepared.

        Args:
            confinement: what it applies to itself; None if it is not contained.
            log: descriptor for its standard error.
            lock: descriptor that it holds for as long as it lives.

        Raises:
            ForkServerError: it could not be done.
        """
        reader, writer = os.pipe()
        output = os.fdopen(reader, "rb")
        try:
            request = self._request("fork", directory=directory.resolve(), confinement=confinement)
            child = ForkedChild(self, self._ask(request, writer, log, lock).pid, output)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(writer)
        self._children.add(child)
        return child

    def find_exit_code(self, child: "ForkedChild") -> int | None:
        """Return the exit code of a child that has ended. None if the fork server has died."""
        return self._ask_about(child, "wait")

    def bury(self, child: "ForkedChild") -> None:
        """Release the process id of a child that has ended."""
        self._ask_about(child, "bury")
        self._children.remove(child)

    def end(self) -> None:
        """Kill the fork server, and its children with it. They are still to be buried."""
        self.has_been_ended = True
        self._process.kill()
        self._process.wait()
        with self._asking:
            self._control.close()

    def _ask_about(self, child: "ForkedChild", what: Literal["wait", "bury"]) -> int | None:
        try:
            return self._ask(self._request(what, pid=child.pid)).exit_code
        except ForkServerError:
            self._process.kill()  # kills its children, too: their exit codes are lost
            return None

    def _request(
        self,
        what: What,
        *,
        directory: Path | None = None,
        confinement: Confinement | None = None,
        pid: int | None = None,
    ) -> Request:
        return Request(
            number=next(self._requests),
            what=what,
            directory=directory,
            confinement=confinement,
            pid=pid,
        )

    def _ask(
        self,
        request: Request,
        *descriptors: int,
        within_s: float | None = None,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> Answer:
        try:
            with self._asking:
                message = request.model_dump_json().encode()
                socket.send_fds(self._control, [message], descriptors)
                limit_s = self.answer_s if within_s is None else within_s
                answer = self._await_answer(request, within_s=limit_s, while_waiting=while_waiting)
        except OSError as error:
            raise ForkServerError(f"the fork server has died: {error}") from error
        except ValidationError as error:  # also for the empty message of a closed socket
            raise ForkServerError("the fork server has died, or its answer is invalid") from error
        if answer.refusal is not None:
            raise ForkServerError(answer.refusal)
        return answer

    def _await_answer(
        self, request: Request, *, within_s: float, while_waiting: Callable[[], object]
    ) -> Answer:
        deadline_s = time.monotonic() + within_s
        while True:
            if self._answers.poll(1000 * SIGNAL_POLL_INTERVAL_S):
                answer = Answer.model_validate_json(self._control.recv(MAX_MESSAGE_BYTES))
                if answer.number == request.number:
                    return answer
            while_waiting()
            if time.monotonic() > deadline_s:
                raise ForkServerError(f"the fork server does not answer: {request.what}")


class ForkedChild:
    """A process that the fork server has forked. It is a `Child`.

    The kernel reports its end, but only the fork server knows its exit code. Until `bury`, the
    fork server keeps the process table entry, so no other process can get the same id.

    Attributes:
        output: where the child writes its events.

    Raises:
        ForkServerError: the kernel cannot watch processes.
    """

    def __init__(self, fork_server: ForkClient, pid: int | None, output: IO[bytes]) -> None:
        if pid is None:
            raise ForkServerError("the fork server names no child")
        self.pid = pid
        self.output = output
        self._fork_server = fork_server
        self._exit_code: int | None = None
        try:
            self._process = os.pidfd_open(pid)
        except OSError as error:
            raise ForkServerError(f"the child cannot be watched: {error}") from error

    def poll(self) -> int | None:
        return self._exit_code_within(0)

    def wait(self, timeout: float | None = None) -> int:
        exit_code = self._exit_code_within(timeout)
        if exit_code is None:
            raise subprocess.TimeoutExpired("the child", timeout or 0)
        return exit_code

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGTERM)

    def bury(self) -> None:
        """Release the process id. Call this once the child has ended; it is then unusable."""
        self._fork_server.bury(self)
        self.output.close()
        os.close(self._process)

    def _exit_code_within(self, timeout_s: float | None) -> int | None:
        if self._exit_code is None:
            ended = select.poll()
            ended.register(self._process, select.POLLIN)
            if ended.poll(None if timeout_s is None else 1000 * timeout_s):
                exit_code = self._fork_server.find_exit_code(self)
                # A child that died together with the fork server was killed with it.
                self._exit_code = -signal.SIGKILL if exit_code is None else exit_code
        return self._exit_code
