"""Two projects ask their models through the API while the sampler is killed again and again."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import openai
import pytest

from app.core.sampling.health import answers
from tests.asking.service import AskedService, import_random_adapter, install_asked_model
from tests.effort import effort
from tests.sampler_client import kill_child
from tests.waiting import wait_until

KILLS = effort(2, long=10)
REQUESTS = 50 * KILLS
CLIENTS = 8
WITHIN_S = 60 + 60 * KILLS
PATIENCE_S = 120.0
"""Longest time that a request may take, in seconds. The API gives up earlier."""

WHO: list[Any] = [{"role": "user", "content": "Who are you?"}]
TOKENS = 16


@dataclass(frozen=True)
class Project:
    """A project, with the models that it asks."""

    key: str
    own: str
    """Its tuned model."""
    expected: dict[str, str]
    """The whole answers of its models."""
    foreign: str
    """The tuned model of another project."""


class Crowd:
    """Clients of several projects. Each request is sent again until there is an answer to it."""

    def __init__(self, service: AskedService, projects: list[Project]) -> None:
        self._service = service
        self._projects = projects
        self._left = iter(range(REQUESTS))
        self._lock = threading.Lock()
        self.begun = 0
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self) -> None:
        """Ask until all requests are begun."""
        for number in self._numbers():
            project = self._projects[number % len(self._projects)]
            models = ["tiny", project.own, project.own, project.foreign]
            model = models[number // len(self._projects) % len(models)]
            try:
                while self._ask(project, model, is_streamed=number % 5 < 3) == "unavailable":
                    self._await_sampler()
            except Exception as error:  # the others go on, and the test fails at its end
                self.problems.append(f"request {number}: {error!r}")

    def _ask(self, project: Project, model: str, *, is_streamed: bool) -> str:
        """Ask a model, and check and count what comes back. Returns how the request has ended."""
        outcome = self._find_outcome(project, model, is_streamed=is_streamed)
        with self._lock:
            self.outcomes[outcome] += 1
        return outcome

    def _find_outcome(self, project: Project, model: str, *, is_streamed: bool) -> str:
        texts: list[str] = []
        with self._service.client(project.key, timeout=PATIENCE_S) as client:
            try:
                for text in _ask(client, model, is_streamed=is_streamed):
                    texts.append(text)  # noqa: PERF402 - what came before an error counts, too
            except openai.APIError as error:
                if model == project.foreign:
                    return _check_absent(error)
                return _check_unavailable(error, "".join(texts), project.expected[model])
        assert "".join(texts) == project.expected[model]
        return "answered"

    def _numbers(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._left, None)
                self.begun += 1
            if number is None:
                return
            yield number

    def _await_sampler(self) -> None:
        wait_until(lambda: answers(self._service.data_dir / "sampler"), within_s=WITHIN_S)


def _check_absent(error: openai.APIError) -> str:
    """The model of another project is unknown, whatever happens to the sampler."""
    assert isinstance(error, openai.NotFoundError), error
    assert error.code == "model_not_found"
    return "not found"


def _check_unavailable(error: openai.APIError, told: str, expected: str) -> str:
    """The sampler died, before the answer or in the middle of its stream."""
    assert error.code == "sampler_unavailable", error
    assert (
        not isinstance(error, openai.APIStatusError)
        or error.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    )
    assert expected.startswith(told)
    return "unavailable"


def _ask(client: openai.OpenAI, model: str, *, is_streamed: bool) -> Iterator[str]:
    """The pieces of a greedy answer."""
    asked: dict[str, Any] = {"model": model, "messages": WHO}
    asked |= {"temperature": 0, "max_tokens": TOKENS}
    if not is_streamed:
        yield client.chat.completions.create(**asked).choices[0].message.content or ""
        return
    is_complete = False
    for chunk in client.chat.completions.create(**asked, stream=True):
        yield chunk.choices[0].delta.content or ""
        is_complete = chunk.choices[0].finish_reason is not None
    assert is_complete, "a stream without its end"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AskedService]:
    data_dir = tmp_path / "data"
    install_asked_model(data_dir, source=tmp_path / "our-tiny")
    key_file = str(data_dir / "first-key")
    with AskedService(data_dir, workers=0, bootstrap_key_file=key_file) as service:
        yield service


def make_projects(service: AskedService, directory: Path) -> list[Project]:
    """Two projects that have a tuned model each, and their answers before anything is killed."""
    base = service.data_dir / "models" / "tiny"
    keys = [service.new_project(name) for name in ("red", "blue")]
    models: list[str] = []
    for seed, key in enumerate(keys):
        with service.client(key) as client:
            models.append(import_random_adapter(client, base, directory / str(seed), seed=seed))
    projects: list[Project] = []
    for own, foreign, key in zip(models, reversed(models), keys, strict=True):
        with service.client(key) as client:
            expected = {
                model: "".join(_ask(client, model, is_streamed=False)) for model in ("tiny", own)
            }
        projects.append(Project(key, own, expected, foreign))
    return projects


def kill_keeper(service: AskedService) -> None:
    """Kill the keeper, and start another one as an operator's service manager does."""
    service.processes["sampler"].kill()
    service.start("sampler")


@pytest.mark.timeout(180 + 2 * WITHIN_S)
def test_every_request_ends_with_the_answer_of_its_model_or_a_clean_error(
    service: AskedService, tmp_path: Path
) -> None:
    projects = make_projects(service, tmp_path)
    crowd = Crowd(service, projects)
    clients = [threading.Thread(target=crowd.run) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    chance = random.Random(16)  # noqa: S311 - no secret
    kills: list[Callable[[AskedService], None]] = [kill_child, kill_keeper]
    for kill in range(KILLS):
        mark = REQUESTS * kill // KILLS + chance.randrange(REQUESTS // KILLS // 2)
        wait_until(lambda mark=mark: crowd.begun > mark, within_s=WITHIN_S)
        kills[kill % 2](service)
    for client in clients:
        client.join(WITHIN_S)
        assert not client.is_alive()

    assert crowd.problems == []
    assert crowd.outcomes["answered"] + crowd.outcomes["not found"] == REQUESTS
    assert crowd.outcomes["not found"] >= REQUESTS // 5
    assert crowd.outcomes["unavailable"] > 0
    assert len({text for project in projects for text in project.expected.values()}) == 3
