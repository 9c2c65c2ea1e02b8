"""Who waits and who is answered. All threads of the process meet here."""

import threading
from collections import Counter
from typing import Literal

from app.core.sampling.messages import Refused
from worker.sampling.serving.batch import Running
from worker.sampling.serving.requests import Request
from worker.sampling.serving.waiting import WaitingLine

MAX_ANSWERS = 16
"""Maximum number of answers in the making. A step of more takes longer for each of them, and gains
little on a processor."""

_BUSY_RETRY_S = 5
_TRAINING_RETRY_S = 60


class Desk:
    """The requests that wait and those that are answered.

    Attributes:
        trains: whether a job trains on this machine.

    Args:
        queue: maximum number of requests that wait.
        mode: what happens to requests while a job trains.
    """

    def __init__(self, *, queue: int, mode: Literal["idle", "shared"]) -> None:
        self.trains = False
        self._mode = mode
        self._changed = threading.Condition()
        self._queue = queue
        self._line = WaitingLine()
        self._admitted: set[Request] = set()
        self._prepared: list[Running] = []

    @property
    def refuses(self) -> bool:
        """Whether new requests are refused because a job trains."""
        return self.trains and self._mode == "idle"

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn, or refuse it."""
        with self._changed:
            if self.refuses:
                request.end(_training_refusal())
                return
            room = MAX_ANSWERS - self._count_admitted().total()
            excess = self._line.add(request, limit=self._queue + max(0, room))
            self._changed.notify_all()
        if excess is not None:
            excess.end(_busy_refusal(self._queue))

    def cancel(self, request: Request) -> None:
        """Stop answering a request whose client has left."""
        with self._changed:
            request.is_cancelled = True
            if self._line.remove(request):
                request.end()
            self._changed.notify_all()

    def set_training(self, trains: bool) -> None:  # noqa: FBT001 - what the keeper says
        """Note whether a job trains. In the mode `idle`, what waits is refused when one begins."""
        with self._changed:
            self.trains = trains
            refused = self._line.clear() if self.refuses else []
            self._changed.notify_all()
        for request in refused:
            request.end(_training_refusal())

    def take(self) -> Request:
        """Wait for the request whose turn it is, and for room for its answers."""
        with self._changed:
            while True:
                running = self._count_admitted()
                request = self._line.take(MAX_ANSWERS - running.total(), running)
                if request is not None:
                    self._admitted.add(request)
                    return request
                self._changed.wait()

    def wait_for_change(self, request: Request, *, within_s: float) -> bool:
        """Wait until an admitted request may find more memory than before.

        Returns:
            False if no other request is being answered, so that there will be no more.
        """
        with self._changed:
            if self._admitted == {request}:
                return False
            self._changed.wait(within_s)
            return True

    def hand_over(self, running: Running) -> None:
        """Let a request be answered that has been prepared."""
        with self._changed:
            self._prepared.append(running)
            self._changed.notify_all()

    def collect(self, *, waits: bool) -> list[Running]:
        """The requests that were handed over since the last call.

        Args:
            waits: whether to wait until there is one, or until training begins or ends.
        """
        with self._changed:
            if waits and not self._prepared:
                self._changed.wait()
            prepared, self._prepared = self._prepared, []
            return prepared

    def rest(self, seconds: float) -> None:
        """Wait for so long, or until something changes."""
        with self._changed:
            self._changed.wait(seconds)

    def _count_admitted(self) -> Counter[str]:
        """Answers in the making, by project."""
        counts = Counter[str]()
        for request in self._admitted:
            counts[request.ask.project_id] += request.ask.choices
        return counts

    def leave(self, request: Request) -> None:
        """Give the room of a request that has ended to others."""
        with self._changed:
            self._admitted.discard(request)
            self._changed.notify_all()


def _busy_refusal(queue: int) -> Refused:
    return Refused(
        status=429,
        code="sampler_busy",
        message=f"The sampler is busy, and {queue} requests wait already (TUNERY_SAMPLING_QUEUE). "
        "Send the request again in a few seconds.",
        retry_after_s=_BUSY_RETRY_S,
    )


def _training_refusal() -> Refused:
    return Refused(
        status=429,
        code="training_in_progress",
        message="A job trains on this machine, and the sampler answers only while none does "
        "(TUNERY_SAMPLING is idle). Send the request again when the job has ended.",
        retry_after_s=_TRAINING_RETRY_S,
    )
