"""What clients do again and again, each thing at its own rate."""

import threading
import time
from collections.abc import Callable, Mapping

from tests.soak.client import Answers, Client

Act = Callable[[Client], None]


class Repeated:
    """Acts that are repeated while the block runs, each in a thread of its own.

    Args:
        every_s: the acts, with the time between two of each in seconds.
        open_client: makes the client of a thread.
        answers: gets the exceptions of acts as problems.
    """

    def __init__(
        self, every_s: Mapping[Act, float], open_client: Callable[[], Client], answers: Answers
    ) -> None:
        self._every_s = every_s
        self._open_client = open_client
        self._answers = answers
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> None:
        self._ended.clear()
        self._threads = [
            threading.Thread(target=self._repeat, args=(act, interval_s))
            for act, interval_s in self._every_s.items()
        ]
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, act: Act, interval_s: float) -> None:
        client = self._open_client()
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + interval_s, time.monotonic())
            try:
                act(client)
            except Exception as error:  # the others go on, and the run fails at its end
                self._answers.problems.append(f"{act.__name__}: {error!r}")
        client.close()
