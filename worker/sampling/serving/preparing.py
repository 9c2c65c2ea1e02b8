"""Prepares requests in threads of their own: what they load and encode holds up no answer."""

import time
from contextlib import ExitStack

import torch

from app.core.clock import steady_s
from worker.sampling.pulse import LOADING_S, STEP_S, Pulse
from worker.sampling.serving.batch import Running
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.pace import rest_after
from worker.sampling.serving.requests import Request, explain_failure
from worker.sampling.serving.shelf import Shelf


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
    """

    def __init__(self, desk: Desk, shelf: Shelf, *, loads: bool) -> None:
        self._desk = desk
        self._shelf = shelf
        self._loads = loads
        self.pulse = Pulse()

    def run(self) -> None:
        """Prepare requests for as long as the process lives."""
        torch.set_num_threads(1)
        while True:
            self.run_once()

    def run_once(self) -> None:
        """Prepare the next request, if there is one soon."""
        request = self._desk.take(lambda each: self._shelf.has(each.ask) is not self._loads)
        if request is None:
            return
        began_s = time.thread_time()
        self.pulse.expect(LOADING_S)
        self.prepare(request)
        self.pulse.rest()
        worked_s = time.thread_time() - began_s
        until_s = steady_s() + rest_after(worked_s, trains=self._desk.trains)
        while self._desk.rest(until_s):
            pass

    def prepare(self, request: Request) -> None:
        """Prepare a request that was taken, or end it."""
        with ExitStack() as undo:
            undo.callback(self._desk.leave, request)
            undo.callback(request.end)
            try:
                running = self._begin(request, undo)
            except Exception as error:
                request.end(explain_failure(error))
                return
            if running is not None:
                undo.pop_all()
                self._desk.hand_over(running)

    def _begin(self, request: Request, undo: ExitStack) -> Running | None:
        """Get ready what the request needs. None if it was stopped meanwhile."""
        ask = request.ask
        model = self._shelf.take_model(ask)
        undo.callback(self._shelf.release, model)
        if request.is_stopped:
            return None
        adapter = None
        if ask.adapter is not None:
            adapter = self._shelf.take_adapter(model, ask.adapter, request.files)
            undo.callback(self._shelf.release, adapter)
        if request.is_stopped:
            return None
        self.pulse.expect(STEP_S)
        with model.preparing:
            return Running(request, model, adapter, model.decoder.prepare(ask))
