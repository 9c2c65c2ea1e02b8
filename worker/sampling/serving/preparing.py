"""Prepares requests in a thread of its own: what it loads and encodes holds up no answer."""

import logging
from contextlib import ExitStack

import torch

from worker.sampling.pulse import LOADING_S, STEP_S, Pulse
from worker.sampling.serving.batch import Running
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.requests import Request, UnavailableError, explain_failure
from worker.sampling.serving.shelf import Shelf

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
"""Time after which a request that waits for memory looks again, in seconds."""

_FIRST_TOKENS = 64
"""Tokens of each answer for which there must be room before it is begun."""


class Preparer:
    """Takes requests in their turn, and hands them over to be answered.

    Attributes:
        pulse: that of the thread that runs it.
    """

    def __init__(self, desk: Desk, shelf: Shelf) -> None:
        self._desk = desk
        self._shelf = shelf
        self.pulse = Pulse()

    def run(self) -> None:
        """Prepare requests for as long as the process lives."""
        torch.set_num_threads(1)
        while True:
            self.pulse.rest()
            request = self._desk.take()
            self.pulse.expect(LOADING_S)
            with ExitStack() as undo:
                undo.callback(self._desk.leave, request)
                try:
                    running = self._prepare(request, undo)
                except Exception as error:
                    refusal = explain_failure(error)
                    if refusal.status == 500:  # noqa: PLR2004 - nobody has foreseen it
                        logger.exception("a request could not be prepared")
                    request.end(refusal)
                else:
                    undo.pop_all()
                    self._desk.hand_over(running)

    def _prepare(self, request: Request, undo: ExitStack) -> Running:
        ask = request.ask
        model = self._shelf.take_model(ask)
        undo.callback(self._shelf.release, model)
        adapter = None
        if ask.adapter is not None:
            adapter = self._shelf.take_adapter(model, ask.adapter, request.files)
            undo.callback(self._shelf.release, adapter)
        self.pulse.expect(STEP_S)
        prepared = model.decoder.prepare(ask)
        self.pulse.rest()
        tokens = ask.choices * (len(prepared.prompt) + _FIRST_TOKENS)
        self._wait_for_room(request, tokens * model.runner.bytes_per_token)
        return Running(request, model, adapter, prepared)

    def _wait_for_room(self, request: Request, needed: int) -> None:
        while not self._shelf.make_room(needed):
            if not self._desk.wait_for_change(request, within_s=_LOOK_AGAIN_S):
                raise UnavailableError(
                    "sampler_memory",
                    f"The prompt takes {needed:,} bytes of memory, and the sampler has no room for "
                    "them (TUNERY_SAMPLING_MEMORY_BYTES). Send a shorter one.",
                )
            if request.is_cancelled:
                return
