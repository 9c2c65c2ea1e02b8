"""Requests to a sampler that is killed again and again: right answers, or none."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from app.core.sampling.messages import Delta, Finished, Refused
from tests.effort import effort
from tests.sampler_client import Call, SavedAdapter, build_ask, kill_child
from tests.tiny import install_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

KILLS = effort(1, long=10)
REQUESTS = 50 * KILLS
CLIENTS = 8
WITHIN_S = 60 + 60 * KILLS


class Crowd:
    """Clients that ask for one model or another, and remember what was answered."""

    def __init__(self, data_dir: Path, adapters: list[SavedAdapter]) -> None:
        self._data_dir = data_dir
        self._adapters = [None, *adapters]
        self._left = iter(range(REQUESTS))
        self._lock = threading.Lock()
        self.texts: list[set[str]] = [set() for _ in self._adapters]
        """Whole answers of each model."""
        self.begun = 0

    def ask(self, model: int) -> str | None:
        """The whole answer of a model; None if there is none."""
        adapter = self._adapters[model]
        ask = build_ask(self._data_dir, adapter=adapter and adapter.ref)
        texts: list[str] = []
        with closing(Call(self._data_dir / "sampler")) as call, suppress(ConnectionError):
            call.ask(ask, adapter)
            for answer in call.answers():
                assert not isinstance(answer, Refused), answer
                if isinstance(answer, Delta):
                    texts.append(answer.text)
                if isinstance(answer, Finished):
                    return "".join(texts)
        return None

    def run(self) -> None:
        """Ask until all requests are begun."""
        for number in self._numbers():
            model = number % len(self._adapters)
            text = self.ask(model)
            if text is not None:
                self.texts[model].add(text)

    def _numbers(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._left, None)
                self.begun += 1
            if number is None:
                return
            yield number


@pytest.mark.timeout(120 + 2 * WITHIN_S)
def test_every_request_gets_the_answer_of_its_model_or_none(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    install_tiny_model(data_dir, source=tmp_path / "tiny")
    base = data_dir / "models" / "tiny"
    crowd = Crowd(
        data_dir, [SavedAdapter.make(tmp_path / str(seed), base, seed=seed) for seed in (1, 2)]
    )
    settings = {"install_default_model": "false", "training_dtype": "float32"}
    with LocalService(data_dir, settings, workers=0, has_sampler=True) as service:
        expected = [crowd.ask(model) for model in range(3)]
        clients = [threading.Thread(target=crowd.run) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        chance = random.Random(16)  # noqa: S311 - no secret
        for kill in range(KILLS):
            mark = REQUESTS * kill // KILLS + chance.randrange(REQUESTS // KILLS // 2)
            wait_until(lambda mark=mark: crowd.begun > mark, within_s=WITHIN_S)
            kill_child(service)
        for client in clients:
            client.join(WITHIN_S)
            assert not client.is_alive()

    assert len(set(expected)) == 3
    assert crowd.texts == [{text} for text in expected]
