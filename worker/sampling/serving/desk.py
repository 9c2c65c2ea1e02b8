"""Who waits and who is answered. All threads of the process meet here."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal

from app.core.clock import steady_s
from app.core.sampling.messages import MAX_CHOICES, Refused
from worker.sampling.serving.batch import Running
from worker.sampling.serving.options import GRACE_S
from worker.sampling.serving.requests import Request
from worker.sampling.serving.waiting import MAX_OF_PROJECT, WaitingLine

MAX_ANSWERS = MAX_OF_PROJECT + MAX_CHOICES
"""Maximum number of answers in the making: a project that has as many as it may leaves room for any
request of another one."""

TURN_S = 120.0
"""Time after which a project that waits and has no answers in the making gets room from another
one, in seconds. Most answers end sooner, so few have to make room."""

LOOK_S = 1.0
"""Longest time that a thread waits before it looks around again, in seconds. Nothing wakes it when
time runs out for a request, or when what was kept has become too old."""

_RETRY_S = 5
"""Seconds after which a client that was refused is told to ask again. A job may just have ended."""


class Desk:
    """The requests that wait and those that are answered.

    Attributes:
        trains: whether a job trains on this machine.

    Args:
        queue: maximum number of requests that wait.
        mode: what happens to requests while a job trains.
        grace_s: time in which answers may finish when a job begins to train, in seconds. It counts
            in the mode `idle`.
        turn_s: time after which others make room for a project that has no answers, in seconds.
    """

    def __init__(
        self,
        *,
        queue: int,
        mode: Literal["idle", "shared"],
        grace_s: float = GRACE_S,
        turn_s: float = TURN_S,
    ) -> None:
        self.trains = False
        self._mode = mode
        self._grace_s = grace_s
        self._turn_s = turn_s
        self._closes_s = 0.0
        self._changed = threading.Condition()
        self._queue = queue
        self._line = WaitingLine()
        self._admitted: list[Request] = []
        """Those that are prepared or answered, in the order in which their turn came."""
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
            running = self._count_admitted()
            room = min(
                MAX_ANSWERS - running.total(), MAX_OF_PROJECT - running[request.ask.project_id]
            )
            excess = self._line.add(request, limit=self._queue + max(0, room))
            self._changed.notify_all()
        if excess is not None:
            excess.end(_busy_refusal(self._queue))

    def cancel(self, request: Request) -> None:
        """Stop answering a request whose client has left. Its room is free at once."""
        with self._changed:
            request.stop()
            if self._line.remove(request):
                request.end()
            self._free(request)

    def set_training(self, trains: bool) -> None:  # noqa: FBT001 - what the keeper says
        """Note whether a job trains.

        When one begins in the mode `idle`, what waits is refused, and answers in the making have
        the grace period to finish.
        """
        with self._changed:
            if trains and not self.trains:
                self._closes_s = steady_s() + self._grace_s
            self.trains = trains
            refused = self._line.clear() if self.refuses else []
            self._changed.notify_all()
        for request in refused:
            request.end(_training_refusal())

    def take(self, accepts: Callable[[Request], bool]) -> Request | None:
        """Take the request whose turn it is. Waits for one, and for room for its answers.

        Args:
            accepts: whether the caller takes this request, or leaves it to another thread.

        Returns:
            None if there was none within `LOOK_S`.
        """
        with self._changed:
            request = self._take(accepts)
            if request is None:
                self._changed.wait(LOOK_S)
                request = self._take(accepts)
            return request

    def _take(self, accepts: Callable[[Request], bool]) -> Request | None:
        running = self._count_admitted()
        request = self._line.take(MAX_ANSWERS - running.total(), running, accepts)
        if request is not None:
            self._admitted.append(request)
        return request

    def put_back(self, request: Request) -> None:
        """Let a request that was taken wait for its turn again, or end it if it was stopped."""
        with self._changed:
            self._free(request)
            if request.is_stopped:
                request.end()
            else:
                self._line.put_back(request)

    def hand_over(self, running: Running) -> None:
        """Let a request be answered that has been prepared."""
        with self._changed:
            self._prepared.append(running)
            self._changed.notify_all()

    def collect(self, *, waits: bool) -> list[Running]:
        """The requests that were handed over since the last call.

        It also stops all requests when the grace period is over, and the one that has to make room
        for another project.

        Args:
            waits: whether to wait until something changes, at most for `LOOK_S`.
        """
        with self._changed:
            if waits and not self._prepared:
                self._changed.wait(LOOK_S)
            if self.refuses and steady_s() >= self._closes_s:
                for request in self._admitted:
                    request.stop(_training_refusal())
            self._make_room()
            prepared, self._prepared = self._prepared, []
            return prepared

    def rest(self, until_s: float) -> bool:
        """Leave the processor to a job that trains, until something changes.

        Args:
            until_s: time of the steady clock at which the rest is over at the latest.

        Returns:
            Whether there was anything to rest for. Call it again until there is not.
        """
        with self._changed:
            left_s = until_s - steady_s()
            if left_s <= 0 or not self.trains:
                return False
            self._changed.wait(left_s)
            return True

    def leave(self, request: Request) -> None:
        """Give the room of a request that has ended to others."""
        with self._changed:
            self._free(request)

    def _make_room(self) -> None:
        """Stop an answer for a project that has none and has waited for long.

        It is the oldest request of the project with the most answers.
        """
        running = self._count_admitted()
        waiting = self._line.peek(running)
        if (
            waiting is None
            or running[waiting.ask.project_id]
            or waiting.ask.choices <= MAX_ANSWERS - running.total()
            or steady_s() < waiting.arrived_s + self._turn_s
        ):
            return
        oldest = max(self._admitted, key=lambda each: running[each.ask.project_id])
        oldest.stop(_turn_refusal())
        self._free(oldest)

    def _free(self, request: Request) -> None:
        """Give the room of a request to others."""
        if request in self._admitted:
            self._admitted.remove(request)
        self._changed.notify_all()

    def _count_admitted(self) -> Counter[str]:
        """Answers in the making, by project."""
        counts = Counter[str]()
        for request in self._admitted:
            counts[request.ask.project_id] += request.ask.choices
        return counts


def _busy_refusal(queue: int) -> Refused:
    return Refused(
        status=429,
        code="sampler_busy",
        message=f"The sampler is busy, and {queue} requests wait already (TUNERY_SAMPLING_QUEUE). "
        "Send the request again in a few seconds.",
        retry_after_s=_RETRY_S,
    )


def _turn_refusal() -> Refused:
    return Refused(
        status=429,
        code="sampler_busy",
        message="The sampler is busy, and this answer has made room for another project, which had "
        "waited for long. Send the request again in a few seconds, with a smaller max_tokens.",
        retry_after_s=_RETRY_S,
    )


def _training_refusal() -> Refused:
    return Refused(
        status=429,
        code="training_in_progress",
        message="A job trains on this machine, and the sampler answers only while none does "
        "(TUNERY_SAMPLING is idle). Send the request again when the job has ended.",
        retry_after_s=_RETRY_S,
    )
