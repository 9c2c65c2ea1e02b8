"""Starts a fork server, talks to it, and watches the child that it forks."""

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

from app.core.subprocesses import python_module
from worker.launch.fork_protocol import MAX_MESSAGE_BYTES, Answer, Request
from worker.launch.launcher import LOOK_INTERVAL_S
from worker.launch.supervision import child_environment

PREPARE_S = 600.0
"""Seconds within which libraries and base model must be loaded: long, for large ones on slow
disks. Whoever loses patience can give other orders meanwhile."""

ANSWER_S = 30.0
"""Seconds within which everything else must be done, which takes milliseconds."""


class ForkServerError(Exception):
    """The fork server has died, does not answer, or refuses: it is of no use any more."""


class ForkClient:
    """A process that is started at once, and loads and forks what it is asked to.

    Two threads may ask; the answers do not get mixed up.

    Raises:
        ForkServerError: it could not be started.
    """

    def __init__(self, module: str, *, idle_s: float) -> None:
        self._asking = threading.Lock()
        self._child: ForkedChild | None = None
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
    def has_retired(self) -> bool:
        """Whether it has ended by itself because nobody asked for anything."""
        return self._process.poll() == 0

    def preload(self, *, lock: int) -> None:
        """Load what every job needs. Returns at once; the next request waits until that is done.

        Args:
            lock: descriptor that the fork server holds until it has loaded everything.

        Raises:
            ForkServerError: the fork server is gone.
        """
        try:
            with self._asking:
                request = Request(what="preload").model_dump_json().encode()
                socket.send_fds(self._control, [request], [lock])
        except OSError as error:
            raise ForkServerError(f"the fork server is gone: {error}") from error

    def prepare(self, directory: Path, *, while_waiting: Callable[[], object]) -> None:
        """Load what the job in this directory needs, unless that is loaded already.

        Args:
            while_waiting: called regularly. If it raises, it reaches the caller, who must
                then end the fork server, since its answer would still arrive.

        Raises:
            ForkServerError: it could not be done.
        """
        request = Request(what="prepare", directory=directory.resolve())
        self._ask(request, within_s=PREPARE_S, while_waiting=while_waiting)

    def fork(self, directory: Path, *, log: int, lock: int) -> "ForkedChild":
        """Start a child that trains the job in this directory, as soon as that is prepared.

        Args:
            log: descriptor for its standard error.
            lock: descriptor that it holds for as long as it lives.

        Raises:
            ForkServerError: it could not be done.
        """
        reader, writer = os.pipe()
        output = os.fdopen(reader, "rb")
        try:
            request = Request(what="fork", directory=directory.resolve())
            self._child = ForkedChild(self, self._ask(request, writer, log, lock).pid, output)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(writer)
        return self._child

    def find_exit_code(self) -> int | None:
        """Of the child, which has ended; None when the fork server cannot say any more."""
        return self._ask_about_child("look")

    def bury(self) -> None:
        """Let go of the child, whose process id is free from now on."""
        self._ask_about_child("bury")
        self._close_child()

    def end(self) -> None:
        """End it at once, and a child with it."""
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._close_child()

    def _close_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask_about_child(self, what: Literal["look", "bury"]) -> int | None:
        try:
            return self._ask(Request(what=what)).exit_code
        except ForkServerError:
            self._process.kill()  # and so its child, of which nothing can be learned any more
            return None

    def _ask(
        self,
        request: Request,
        *descriptors: int,
        within_s: float = ANSWER_S,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> Answer:
        try:
            with self._asking:
                message = request.model_dump_json().encode()
                socket.send_fds(self._control, [message], descriptors)
                self._await_answer(request, within_s=within_s, while_waiting=while_waiting)
                answer = Answer.model_validate_json(self._control.recv(MAX_MESSAGE_BYTES))
        except OSError as error:
            raise ForkServerError(f"the fork server is gone: {error}") from error
        except ValidationError as error:  # also for nothing at all, which is its end
            raise ForkServerError("the fork server is gone, or talks nonsense") from error
        if answer.refusal is not None:
            raise ForkServerError(answer.refusal)
        return answer

    def _await_answer(
        self, request: Request, *, within_s: float, while_waiting: Callable[[], object]
    ) -> None:
        deadline_s = time.monotonic() + within_s
        while not self._answers.poll(1000 * LOOK_INTERVAL_S):
            while_waiting()
            if time.monotonic() > deadline_s:
                raise ForkServerError(f"the fork server does not answer: {request.what}")


class ForkedChild:
    """A process that the fork server has forked; a `Child`.

    The kernel reports that it has ended; only the fork server knows its exit code. Until `bury`,
    the fork server keeps the process table entry, so no other process can get the same id.

    Attributes:
        output: where its events come out.

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
        """To be called once it has ended; afterwards, it cannot be asked for anything."""
        self._fork_server.bury()

    def close(self) -> None:
        self.output.close()
        os.close(self._process)

    def _exit_code_within(self, timeout_s: float | None) -> int | None:
        if self._exit_code is None:
            ended = select.poll()
            ended.register(self._process, select.POLLIN)
            if ended.poll(None if timeout_s is None else 1000 * timeout_s):
                found = self._fork_server.find_exit_code()
                # Nobody can tell any more once it has died together with the fork server.
                self._exit_code = -signal.SIGKILL if found is None else found
        return self._exit_code
