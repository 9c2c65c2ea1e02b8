"""A client that leaves gives its room in the sampler to those who wait, at once."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from types import TracebackType
from typing import Self

import httpx
import pytest

from app.core.clock import steady_s
from tests.asking.service import END_TOKENS, WINDOW, AskedService, install_asked_model
from tests.builders import bearer
from tests.waiting import median_s, wait_until
from worker.sampling.serving.desk import MAX_ANSWERS

AT_ONCE_S = 0.2
CHOICES = 4
PATIENCE_S = 60.0
STEPS = 20
"""Number of messages that show that a stream goes on."""


class EndlessStream:
    """A client that reads an answer which does not end in the time of a test, until it leaves."""

    def __init__(self, service: AskedService, key: str) -> None:
        self._url = f"{service.base_url}/chat/completions"
        self._key = key
        self._leaves = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.messages = 0
        self.status = 0
        self.began_s = self.left_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection in the middle of the answer."""
        self._leaves.set()
        self._thread.join()

    def wait_for_more(self) -> None:
        """Wait until the answer has got further."""
        wanted = self.messages + STEPS
        wait_until(lambda: self.messages >= wanted, within_s=PATIENCE_S)

    def _read(self) -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Who are you?"}],
            "n": CHOICES,
            "stream": True,
            "temperature": 0,
            "max_tokens": WINDOW - 100,
            "logit_bias": {str(token): -100 for token in END_TOKENS},
        }
        with httpx.stream(
            "POST", self._url, json=body, headers=bearer(self._key), timeout=PATIENCE_S
        ) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.began_s = self.began_s or steady_s()
                self.messages += bool(line)
                if self._leaves.is_set():
                    break
        self.left_s = steady_s()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedService]:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    install_asked_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    key_file = str(data_dir / "first-key")
    with AskedService(data_dir, workers=0, bootstrap_key_file=key_file) as service:
        yield service


def test_a_client_that_leaves_makes_room_for_one_that_waits(service: AskedService) -> None:
    keys = cycle([service.new_project(name) for name in ("red", "blue")])
    with ExitStack() as stack:

        def begin() -> EndlessStream:
            return stack.enter_context(EndlessStream(service, next(keys)))

        answered = [begin() for _ in range(MAX_ANSWERS // CHOICES)]
        for stream in answered:
            stream.wait_for_more()

        def leave() -> float:
            waits = begin()
            for stream in answered:
                stream.wait_for_more()
            assert waits.began_s == 0
            first = answered.pop(0)
            first.leave()
            wait_until(lambda: waits.began_s, within_s=PATIENCE_S)
            answered.append(waits)
            return waits.began_s - first.left_s

        assert median_s(leave) < AT_ONCE_S

    assert {stream.status for stream in answered} == {200}
