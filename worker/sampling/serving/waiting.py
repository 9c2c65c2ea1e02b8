"""The requests that wait, in fair turns between projects."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from worker.sampling.serving.requests import Request

MAX_OF_PROJECT = 16
"""Maximum number of answers in the making for one project. A step of more takes longer for each of
them, and gains little on a processor."""


class WaitingLine:
    """Requests that wait, oldest first."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request, *, limit: int) -> Request | None:
        """Let a request wait. Returns the one for which there is no room, if any.

        That is the newest request of the project with the most, so no project can take the room of
        all others.

        Args:
            request: the new one.
            limit: maximum number of requests that wait.
        """
        self._requests.append(request)
        if len(self._requests) <= limit:
            return None
        counts = Counter(each.ask.project_id for each in self._requests)
        most = max(counts.values())
        if counts[request.ask.project_id] == most:
            excess = request
        else:
            excess = next(
                each for each in reversed(self._requests) if counts[each.ask.project_id] == most
            )
        self._requests.remove(excess)
        return excess

    def take(
        self, room: int, running: Mapping[str, int], accepts: Callable[[Request], bool]
    ) -> Request | None:
        """Take the request whose turn it is: the oldest of the project that has the fewest running.

        Projects that have as many as they may are passed over. None if there is no other, or if the
        next one needs more room: it is not overtaken, so a request for many answers waits no longer
        than others.

        Args:
            room: number of answers that can be begun.
            running: number of answers in the making, by project.
            accepts: whether the caller takes this request, or leaves it to another thread.
        """
        for each in self._in_turn(running):
            if each.ask.choices > room:
                return None
            if accepts(each):
                self._requests.remove(each)
                return each
        return None

    def peek(self, running: Mapping[str, int]) -> Request | None:
        """The request whose turn it is, as of `take`. It stays here."""
        return next(self._in_turn(running), None)

    def put_back(self, request: Request) -> None:
        """Let a request that was taken wait again, before all others."""
        self._requests.insert(0, request)

    def remove(self, request: Request) -> bool:
        """Take this request out. Returns whether it waited."""
        if request not in self._requests:
            return False
        self._requests.remove(request)
        return True

    def clear(self) -> list[Request]:
        """Take all of them out."""
        requests, self._requests = self._requests, []
        return requests

    def _in_turn(self, running: Mapping[str, int]) -> Iterator[Request]:
        """The requests of projects that may have more answers, those with the fewest first."""
        full = set[str]()
        for each in sorted(self._requests, key=lambda each: running.get(each.ask.project_id, 0)):
            project = each.ask.project_id
            if running.get(project, 0) + each.ask.choices > MAX_OF_PROJECT:
                full.add(project)
            if project not in full:
                yield each
