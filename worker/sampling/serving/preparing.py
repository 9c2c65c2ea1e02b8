"""Prepares requests in threads of their own: what they load and encode holds up no answer."""

import time
from contextlib import ExitStack

import torch

from app.core.clock import steady_s
from worker.sampling.pulse import LOADING_S, STEP_S, Pulse
from worker.sampling.serving.batch import Running
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.pace import rest_after
from worker.sampling.serving.requests import (
    NoRoomError,
    NotLoadedError,
    Request,
    explain_failure,
)
from worker.sampling.serving.shelf import PATIENCE_S, Shelf


class Preparer:
    """Takes requests in their turn, and hands them over to be answered.

    One thread takes those for which a base model or an adapter must be loaded, and another one all
    others, which need not wait for that.

    Attributes:
        pulse: that of the thread that runs it.

    Args:
        desk: has the requests.
        shelf: has what they need.
        loads: whether it takes those for which something must be loaded.
        patience_s: longest time that a request waits for memory, in seconds.
    """

    def __init__(
        self, desk: Desk, shelf: Shelf, *, loads: bool, patience_s: float = PATIENCE_S
    ) -> None:
        self._desk = desk
        self._shelf = shelf
        self._loads = loads
        self._patience_s = patience_s
        self._without_room = dict[Request, float]()
        """Requests that wait for memory, and until when they do."""
        self.pulse = Pulse()

    def run(self) -> None:
        """Prepare requests for as long as the process lives."""
        torch.set_num_threads(1)
        while True:
            self.run_once()

    def run_once(self) -> None:
        """Prepare the next request, if there is one soon, and those that wait for memory."""
        request = self._desk.take(lambda each: self._shelf.has(each.ask) is not self._loads)
        began_s = time.thread_time()
        for each in [*self._without_room, *([request] if request else [])]:
            self.pulse.expect(LOADING_S)
            self.prepare(each)
            self.pulse.rest()
        worked_s = time.thread_time() - began_s
        until_s = steady_s() + rest_after(worked_s, trains=self._desk.trains)
        while self._desk.rest(until_s):
            pass

    def prepare(self, request: Request) -> None:
        """Prepare a request that was taken, end it, or let it wait for memory."""
        until_s = self._without_room.pop(request, steady_s() + self._patience_s)
        with ExitStack() as taken:
            try:
                running = self._begin(request, taken)
            except NotLoadedError:
                self._desk.put_back(request)
                return
            except BaseException as error:  # what fails in Rust is no Exception
                if isinstance(error, NoRoomError) and error.may_pass and steady_s() < until_s:
                    self._without_room[request] = until_s
                    return
                request.end(explain_failure(error))
                running = None
            if running is not None:
                taken.pop_all()
                self._desk.hand_over(running)
                return
        request.end()
        self._desk.leave(request)

    def _begin(self, request: Request, taken: ExitStack) -> Running | None:
        """Get ready what the request needs. None if it was stopped meanwhile."""
        ask, adapter = request.ask, None
        if request.is_stopped:
            return None
        model = self._shelf.take_model(ask, loads=self._loads)
        taken.callback(self._shelf.release, model)
        if request.is_stopped:
            return None
        if ask.adapter is not None:
            adapter = self._shelf.take_adapter(model, ask.adapter, request.files, loads=self._loads)
            taken.callback(self._shelf.release, adapter)
        if request.is_stopped:
            return None
        self.pulse.expect(STEP_S)
        with model.preparing:
            return Running(request, model, adapter, model.decoder.prepare(ask))
