"""The sampler as a process: its socket, its turns, and what it does when things go wrong."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from app.core.clock import steady_s
from app.core.sampling.health import answers
from app.core.sampling.messages import Accepted, Delta, Finished, Refused
from benchmarks.support.samples import catalogue_entry
from tests.models import install_models
from tests.sampler_client import Call, SavedAdapter, build_ask, endless, kill_child
from tests.tiny import ALL_LINEAR, write_tiny_model
from tests.waiting import median_s, wait_until
from tunery.local_service import LocalService
from worker.launch.locks import TrainingSlots
from worker.sampling.serving.waiting import MAX_OF_PROJECT

QUEUE = 2
SETTINGS = {
    "install_default_model": "false",
    "sampling_queue": str(QUEUE),
    "sampling_threads": "1",
    "sampling_memory_bytes": str(512 * 1024**2),
    "training_dtype": "float32",
}
AT_ONCE_S = 0.2


def install(data_dir: Path, source: Path) -> None:
    """Install a tiny model whose window holds answers that do not end."""
    write_tiny_model(source, max_position_embeddings=65_536)
    entry = catalogue_entry(
        "tiny",
        source={"kind": "directory", "path": str(source)},
        licence="Apache-2.0",
        target_modules=ALL_LINEAR,
    )
    install_models(data_dir, entry)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    install(directory, tmp_path_factory.mktemp("hub") / "tiny")
    return directory


@pytest.fixture(scope="module")
def service(data_dir: Path) -> Iterator[LocalService]:
    with LocalService(data_dir, SETTINGS, workers=0, has_sampler=True) as service:
        yield service


@pytest.fixture
def sampler_dir(service: LocalService) -> Path:
    directory = service.data_dir / "sampler"
    wait_until(lambda: answers(directory), within_s=60)
    return directory


@pytest.fixture(scope="module")
def adapters(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SavedAdapter]:
    directory, base = tmp_path_factory.mktemp("adapters"), data_dir / "models" / "tiny"
    return [SavedAdapter.make(directory / str(seed), base, seed=seed) for seed in (1, 2)]


def find_process(service: LocalService) -> psutil.Process:
    """The first of the processes that sample, which the keeper has started."""
    keeper = psutil.Process(service.processes["sampler"].pid)
    return wait_until(lambda: next(iter(keeper.children()), None), within_s=60)


def test_requests_with_different_adapters_are_answered_together(
    data_dir: Path, sampler_dir: Path, adapters: list[SavedAdapter]
) -> None:
    def ask_all(*, together: bool) -> list[str]:
        texts: list[str] = []
        calls: list[Call] = []
        for adapter in (None, *adapters):
            ask = build_ask(data_dir, adapter=adapter and adapter.ref)
            calls.append(Call.of(sampler_dir, ask, adapter))
            if not together:
                texts.append(calls[-1].text())
        return texts or [call.text() for call in calls]

    alone = ask_all(together=False)

    assert len(set(alone)) == 3
    assert ask_all(together=True) == alone


def test_choices_share_the_prompt_and_end_one_by_one(data_dir: Path, sampler_dir: Path) -> None:
    ask = build_ask(data_dir, "several", choices=3)

    first, *rest = Call.of(sampler_dir, ask).answers()

    assert isinstance(first, Accepted)
    assert first.prompt_tokens == len("several")
    assert {each.choice for each in rest if isinstance(each, Finished)} == {0, 1, 2}
    deltas = [each for each in rest if isinstance(each, Delta)]
    texts = ["".join(each.text for each in deltas if each.choice == n) for n in range(3)]
    assert (
        texts[0]
        == texts[1]
        == texts[2]
        == Call.of(sampler_dir, build_ask(data_dir, "several")).text()
    )


@pytest.mark.usefixtures("sampler_dir")
def test_a_call_is_forced_where_the_template_has_no_tools(service: LocalService) -> None:
    schema = {
        "type": "object",
        "properties": {"is_red": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
        "required": ["is_red", "size"],
        "additionalProperties": False,
    }
    tools: Any = [{"type": "function", "function": {"name": "paint", "parameters": schema}}]
    choice: Any = {"type": "function", "function": {"name": "paint"}}
    with openai.OpenAI(base_url=service.base_url, api_key="unused", max_retries=0) as client:
        answers = [
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Paint it."}],
                tools=tools,
                tool_choice=forced,
            ).choices[0]
            for forced in ("required", choice)
        ]

    for answer in answers:
        (call,) = answer.message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name == "paint"
        painted = json.loads(call.function.arguments)
        assert painted in [
            {"is_red": is_red, "size": size}
            for is_red in (True, False)
            for size in ("small", "large")
        ]
        assert answer.finish_reason == "tool_calls"


def test_what_one_project_has_sent_is_not_known_to_another(
    data_dir: Path, sampler_dir: Path
) -> None:
    prompt = "a secret of nobody else " * 4

    def cached_tokens(project_id: str) -> int:
        accepted, *_ = Call.of(
            sampler_dir, build_ask(data_dir, prompt, project_id=project_id)
        ).answers()
        assert isinstance(accepted, Accepted)
        return accepted.cached_tokens

    assert cached_tokens("proj_a") == 0
    assert cached_tokens("proj_b") == 0
    assert cached_tokens("proj_a") == len(prompt) - 1


def begin_endless(sampler_dir: Path, data_dir: Path, stack: ExitStack, *, choices: int = 4) -> Call:
    ask = build_ask(data_dir, choices=choices, parameters=endless())
    call = Call.of(sampler_dir, ask)
    stack.enter_context(closing(call))
    return call


def test_a_client_that_leaves_makes_room_at_once(data_dir: Path, sampler_dir: Path) -> None:
    with ExitStack() as stack:
        calls = [begin_endless(sampler_dir, data_dir, stack) for _ in range(MAX_OF_PROJECT // 4)]
        for call in calls:
            assert isinstance(call.next(), Accepted)

        def leave() -> float:
            waits = begin_endless(sampler_dir, data_dir, stack)
            began_s = steady_s()
            calls.pop(0).close()
            assert isinstance(waits.next(), Accepted)
            calls.append(waits)
            return steady_s() - began_s

        assert median_s(leave) < AT_ONCE_S


def test_no_more_wait_than_may_and_the_others_are_told_when_to_return(
    data_dir: Path, sampler_dir: Path
) -> None:
    with ExitStack() as stack:
        for _ in range(MAX_OF_PROJECT // 4):
            assert isinstance(begin_endless(sampler_dir, data_dir, stack).next(), Accepted)
        for _ in range(QUEUE):
            begin_endless(sampler_dir, data_dir, stack)
        refused = begin_endless(sampler_dir, data_dir, stack).next()

    assert isinstance(refused, Refused)
    assert (refused.status, refused.code) == (429, "sampler_busy")
    assert refused.retry_after_s


@contextmanager
def training(data_dir: Path) -> Iterator[None]:
    """Let it seem that a job trains on the machine."""
    slots = TrainingSlots(data_dir / "workers", 1)
    with ExitStack() as stack:
        wait_until(lambda: stack.enter_context(slots.take()), within_s=30)
        yield


def test_while_a_job_trains_new_requests_are_refused_and_old_ones_go_on(
    data_dir: Path, sampler_dir: Path, service: LocalService
) -> None:
    def ask() -> Accepted | Delta | Finished | Refused:
        with closing(Call.of(sampler_dir, build_ask(data_dir))) as call:
            return call.next()

    with ExitStack() as stack:
        running = begin_endless(sampler_dir, data_dir, stack)
        assert isinstance(running.next(), Accepted)
        with training(service.data_dir):
            refused = wait_until(
                lambda: isinstance(answer := ask(), Refused) and answer, within_s=30
            )
            assert (refused.status, refused.code) == (429, "training_in_progress")
            assert refused.retry_after_s
            assert isinstance(running.next(), Delta)
        wait_until(lambda: isinstance(ask(), Accepted), within_s=30)


def test_what_answers_is_contained(service: LocalService, sampler_dir: Path) -> None:
    assert answers(sampler_dir)
    innermost = psutil.Process(service.processes["sampler"].pid).children(recursive=True)[-1]
    lines = Path(f"/proc/{innermost.pid}/status").read_text("utf-8").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0


def test_a_shared_machine_answers_while_a_job_trains(tmp_path: Path) -> None:
    data_dir, shared = tmp_path / "data", {**SETTINGS, "sampling": "shared"}
    data_dir.mkdir()
    install(data_dir, tmp_path / "tiny")
    with (
        LocalService(data_dir, shared, workers=0, has_sampler=True),
        training(data_dir),
        closing(Call.of(data_dir / "sampler", build_ask(data_dir))) as call,
    ):
        assert call.text()


def test_a_process_that_is_killed_comes_back(
    data_dir: Path, sampler_dir: Path, service: LocalService
) -> None:
    with ExitStack() as stack:
        running = begin_endless(sampler_dir, data_dir, stack)
        assert isinstance(running.next(), Accepted)

        kill_child(service)

        with suppress(ConnectionError):
            assert all(isinstance(answer, Delta) for answer in running.answers())
        # The keeper holds the socket, so this one waits for the next process.
        assert Call.of(sampler_dir, build_ask(data_dir)).text()


def test_a_process_that_hangs_dies_with_its_keeper(tmp_path: Path) -> None:
    with LocalService(tmp_path, SETTINGS, workers=0, has_sampler=True) as service:
        keeper = psutil.Process(service.processes["sampler"].pid)
        started = keeper.children(recursive=True)
        started[-1].suspend()
        keeper.kill()
        _, alive = psutil.wait_procs(started, timeout=30)
        for process in alive:
            process.kill()

    assert not alive


def open_damaged(adapter: SavedAdapter, how: str) -> list[int]:
    """Descriptors of what comes instead of an adapter."""
    weights, config = (os.open(path, os.O_RDONLY) for path in (adapter.weights, adapter.config))
    others = {
        "directory": lambda: os.open(adapter.weights.parent, os.O_RDONLY),
        "write only": lambda: os.open(adapter.config, os.O_WRONLY),
        "pipe": lambda: os.open("/dev/null", os.O_RDONLY),
    }
    match how:
        case "swapped":
            return [config, weights]
        case "missing" | "only one":
            os.close(weights)
            if how == "only one":
                return [config]
            os.close(config)
            return []
        case _:
            os.close(weights)
            return [others[how](), config]


@pytest.mark.parametrize(
    "damage", ["swapped", "missing", "only one", "directory", "write only", "pipe"]
)
def test_an_adapter_that_is_not_the_right_one_is_refused_alone(
    data_dir: Path, sampler_dir: Path, tmp_path: Path, damage: str
) -> None:
    adapter = SavedAdapter.make(tmp_path / "adapter", data_dir / "models" / "tiny", seed=3)
    ask = build_ask(data_dir, adapter=adapter.ref)
    descriptors = open_damaged(adapter, damage)
    with closing(Call(sampler_dir)) as call, suppress(ConnectionError):
        call.send(ask.model_dump_json().encode(), descriptors)
        for answer in call.answers():
            assert isinstance(answer, Refused)
            assert answer.code == "adapter_damaged"
    for descriptor in descriptors:
        os.close(descriptor)

    assert Call.of(sampler_dir, ask, adapter).text()


def test_noise_on_the_socket_disturbs_nobody(
    data_dir: Path, sampler_dir: Path, service: LocalService
) -> None:
    before = find_process(service).pid
    chance = random.Random(16)  # noqa: S311 - no secret
    good = build_ask(data_dir).model_dump_json().encode()
    with ExitStack() as stack:
        running = begin_endless(sampler_dir, data_dir, stack, choices=1)
        assert isinstance(running.next(), Accepted)
        for _ in range(500):
            with closing(Call(sampler_dir)) as call, suppress(ConnectionError):
                body = bytearray(good)
                for _ in range(chance.randrange(1, 20)):
                    body[chance.randrange(len(body))] = chance.randrange(256)
                if chance.random() < 0.5:
                    call.socket.sendall(chance.randbytes(chance.randrange(1, 60)))
                else:
                    call.send(bytes(body[: chance.randrange(len(body))]))
        assert isinstance(running.next(), Delta)

    assert Call.of(sampler_dir, build_ask(data_dir)).text()
    assert find_process(service).pid == before
