"""Runs as `python -m worker.launch.fork_server MODULE IDLE_S` and forks ready training children.

It loads the libraries and the base model once. Its children share that memory copy-on-write and
start without the wait. It never trains itself: a child lacks the threads of its parent and would
deadlock on their locks. The worker sends requests over a socket, which is this process's standard
input, in the form of `worker.launch.fork_protocol`. The process ends when its worker ends, or after
IDLE_S seconds without a child.
"""

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import cast

from app.core.machine.linux import be_killed_with_parent, die_with_parent, refuse_tracing
from worker.launch.fork_protocol import MAX_MESSAGE_BYTES, Answer, Request
from worker.launch.sandbox.apply import confine_this_process
from worker.launch.trainer import Trainer, load_trainer

_DESCRIPTORS = 3
"""Number of descriptors that come with a request to fork."""


class ForkServer:
    """Answers the requests of one worker until that worker ends.

    Args:
        idle_s: how long it waits for a request while it has no child, in seconds.
    """

    def __init__(self, control: socket.socket, trainer: Trainer, *, idle_s: float) -> None:
        self._control = control
        self._trainer = trainer
        self._idle_s = idle_s
        self._children: set[int] = set()

    def serve(self) -> Path | None:
        """Return None at the end; in each child, return the job directory to train in."""
        while True:
            self._control.settimeout(None if self._children else self._idle_s)
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._control, MAX_MESSAGE_BYTES, _DESCRIPTORS
                )
            except TimeoutError:
                return None
            if not message:  # the worker has ended
                return None
            request = Request.model_validate_json(message)
            if request.what == "preload":
                self._preload(descriptors)
            elif request.what == "fork":
                directory = self._fork(request, descriptors)
                if directory is not None:
                    return directory
            else:
                self._answer(self._do(request))

    def _do(self, request: Request) -> Answer:
        if request.what == "prepare":
            return self._prepare(request)
        if request.pid not in self._children:
            return Answer(number=request.number, refusal="there is no such child")
        if request.what == "wait":
            return Answer(number=request.number, exit_code=_exit_code_of(request.pid))
        os.waitpid(request.pid, 0)
        self._children.remove(request.pid)
        return Answer(number=request.number)

    def _preload(self, descriptors: list[int]) -> None:
        """Load what every job needs. A failure is only logged: `prepare` will report it."""
        try:
            self._trainer.preload()
        except Exception:
            traceback.print_exc()
        finally:
            _close(descriptors)

    def _prepare(self, request: Request) -> Answer:
        refusal: str | None = None
        try:
            self._trainer.prepare(cast("Path", request.directory))
        except Exception as error:
            traceback.print_exc()
            refusal = f"the preparation failed: {error!r:.500}"
        return Answer(number=request.number, refusal=refusal)

    def _fork(self, request: Request, descriptors: list[int]) -> Path | None:
        """Fork a child. Returns the job directory in the child, and None in this process."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            _close(descriptors)
            refusal = f"{threads} threads run, and a forked child would have only one of them"
            self._answer(Answer(number=request.number, refusal=refusal))
            return None
        fork_server = os.getpid()
        is_ready, say_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(is_ready)
            self._control.detach()  # the child's standard input is put into its place
            os.setsid()  # a Ctrl-C in a terminal is for the worker to handle
            be_killed_with_parent()  # from now on it may be stopped
            os.close(say_ready)
            _become_child(fork_server, request, *descriptors)
            return cast("Path", request.directory)
        _close([*descriptors, say_ready])
        os.read(is_ready, 1)  # returns once the child leads a group, and so can be killed as one
        os.close(is_ready)
        self._children.add(child)
        self._answer(Answer(number=request.number, pid=child))
        return None

    def _answer(self, answer: Answer) -> None:
        self._control.settimeout(None)
        self._control.send(answer.model_dump_json().encode())


def _become_child(fork_server: int, request: Request, events: int, log: int, lock: int) -> None:
    """Make this process one that serves this job alone and holds its lock while it lives."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (events, 1), (log, 2)):
        os.dup2(source, target)
        os.close(source)
    die_with_parent(1)
    if os.getppid() != fork_server:
        sys.exit("the fork server has died")
    if request.confinement is not None:
        confine_this_process(request.confinement, cast("Path", request.directory), lock)


def _exit_code_of(child: int) -> int:
    """Wait for the end of the child, but keep its process table entry, so its id is not reused."""
    result = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert result is not None  # noqa: S101 - only with WNOHANG
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def main(module: str, idle_s: float) -> None:
    control = socket.socket(fileno=sys.stdin.fileno())
    die_with_parent(control.fileno())
    refuse_tracing()
    trainer = load_trainer(module)
    directory = ForkServer(control, trainer, idle_s=idle_s).serve()
    if directory is not None:
        trainer.main(directory)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
