"""Base models and adapters are loaded once, and leave by least recent use within a limit."""

import json
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import psutil
import pytest

from app.core.base_models import load_catalogue
from app.core.clock import steady_s
from app.core.job.child.job_spec import ComputeSettings
from app.core.sampling.messages import AdapterRef
from tests.sampler_client import SavedAdapter, build_ask
from tests.tiny import install_tiny_model
from worker.sampling.model.prefixes import PrefixOwner
from worker.sampling.serving.options import ServingOptions
from worker.sampling.serving.requests import UnavailableError
from worker.sampling.serving.shelf import LoadedAdapter, LoadedModel, Shelf

PLENTY = 2**30


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    install_tiny_model(directory, source=tmp_path_factory.mktemp("hub") / "tiny")
    return directory


@pytest.fixture(scope="module")
def adapters(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SavedAdapter]:
    directory, base = (
        tmp_path_factory.mktemp("adapters"),
        load_catalogue(data_dir).directory("tiny"),
    )
    return [SavedAdapter.make(directory / str(seed), base, seed=seed) for seed in range(3)]


def build_shelf(data_dir: Path, *, memory_bytes: int = PLENTY) -> Shelf:
    return Shelf(
        ServingOptions(
            mode="idle",
            memory_bytes=memory_bytes,
            queue=1,
            threads=1,
            models=data_dir / "models",
            speeds=data_dir / "speeds",
            compute=ComputeSettings(dtype="float32"),
        )
    )


def take_adapter(shelf: Shelf, model: LoadedModel, adapter: SavedAdapter) -> LoadedAdapter:
    with adapter.weights.open("rb") as weights, adapter.config.open("rb") as config:
        return shelf.take_adapter(model, adapter.ref, [weights, config], loads=True)


def while_loading(adapter: SavedAdapter) -> int:
    return 3 * adapter.weights.stat().st_size


def refs_on(model: LoadedModel) -> list[AdapterRef]:
    return list(model.adapters)


def test_what_is_needed_twice_is_loaded_once(data_dir: Path, adapters: list[SavedAdapter]) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)

    assert shelf.take_model(build_ask(data_dir), loads=True) is model
    assert take_adapter(shelf, model, adapters[0]) is take_adapter(shelf, model, adapters[0])


def test_the_adapter_that_was_not_used_for_longest_makes_room(
    data_dir: Path, adapters: list[SavedAdapter]
) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)
    size = take_adapter(shelf, model, adapters[0]).bytes
    shelf = build_shelf(data_dir, memory_bytes=model.bytes + size + while_loading(adapters[0]))
    model = shelf.take_model(build_ask(data_dir), loads=True)
    for index in (0, 1, 0, 2):
        shelf.release(take_adapter(shelf, model, adapters[index]))

    assert refs_on(model) == [adapters[0].ref, adapters[2].ref]


def test_what_a_request_needs_never_leaves(data_dir: Path, adapters: list[SavedAdapter]) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)
    shelf = build_shelf(data_dir, memory_bytes=model.bytes + while_loading(adapters[0]))
    model = shelf.take_model(build_ask(data_dir), loads=True)
    take_adapter(shelf, model, adapters[0])

    with pytest.raises(UnavailableError, match="no room"):
        take_adapter(shelf, model, adapters[1])
    shelf.clear()
    assert refs_on(model) == [adapters[0].ref]


def test_an_adapter_that_nobody_has_used_for_long_leaves(
    data_dir: Path, adapters: list[SavedAdapter]
) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)
    shelf.release(take_adapter(shelf, model, adapters[0]))
    later_s = steady_s()
    shelf.release(take_adapter(shelf, model, adapters[1]))
    take_adapter(shelf, model, adapters[2])

    shelf.drop_unused(later_s)
    assert refs_on(model) == [adapters[1].ref, adapters[2].ref]
    shelf.drop_unused(steady_s())
    assert refs_on(model) == [adapters[2].ref]


def test_nothing_leaves_for_answers_that_have_no_room_anyway(
    data_dir: Path, adapters: list[SavedAdapter]
) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)
    shelf.release(take_adapter(shelf, model, adapters[0]))

    assert not shelf.reserve(PLENTY)
    assert refs_on(model) == [adapters[0].ref]
    assert shelf.reserve(PLENTY - model.bytes)
    assert not refs_on(model)


def test_memory_of_an_adapter_is_taken_before_it_is_read(
    data_dir: Path, adapters: list[SavedAdapter]
) -> None:
    shelf, has_room = build_shelf(data_dir), list[bool]()
    model = shelf.take_model(build_ask(data_dir), loads=True)
    left = PLENTY - model.bytes - while_loading(adapters[0])

    class WatchingFile(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            has_room.extend((shelf.make_room(left), shelf.make_room(left + 1)))
            return super().read(size) or b""

    with WatchingFile(adapters[0].weights) as weights, adapters[0].config.open("rb") as config:
        shelf.take_adapter(model, adapters[0].ref, [cast("BinaryIO", weights), config], loads=True)

    assert has_room == [True, False]
    assert shelf.make_room(left + 1)


def test_a_base_model_without_room_is_refused_before_it_is_loaded(data_dir: Path) -> None:
    with pytest.raises(UnavailableError) as raised:
        build_shelf(data_dir, memory_bytes=1000).take_model(build_ask(data_dir), loads=True)

    assert raised.value.answer.code == "sampler_memory"
    assert raised.value.answer.status == 503


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"base_model_sha256": "0" * 64}, id="installed again"),
        pytest.param({"base_model": Path("/etc/..")}, id="elsewhere"),
        pytest.param({"base_model": Path("/models/other")}, id="not installed"),
    ],
)
def test_only_the_base_model_that_was_asked_for_is_loaded(
    data_dir: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(UnavailableError) as raised:
        build_shelf(data_dir).take_model(build_ask(data_dir, **changes), loads=True)

    assert raised.value.answer.code == "base_model_missing"


def test_a_base_model_whose_tokenizer_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    install_tiny_model(tmp_path, source=tmp_path / "hub" / "tiny")
    tokenizer_config = load_catalogue(tmp_path).directory("tiny") / "tokenizer_config.json"
    settings = json.loads(tokenizer_config.read_text("utf-8"))
    settings["eos_token"] = None
    tokenizer_config.write_text(json.dumps(settings), "utf-8")

    with pytest.raises(UnavailableError, match="no end-of-text token") as raised:
        build_shelf(tmp_path).take_model(build_ask(tmp_path), loads=True)

    assert raised.value.answer.code == "base_model_unusable"


def test_when_training_begins_everything_that_nobody_needs_leaves(
    data_dir: Path, adapters: list[SavedAdapter]
) -> None:
    shelf = build_shelf(data_dir)
    model = shelf.take_model(build_ask(data_dir), loads=True)
    shelf.release(model, take_adapter(shelf, model, adapters[0]))

    shelf.clear()

    assert shelf.take_model(build_ask(data_dir), loads=True) is not model


@dataclass
class SmallCache:
    """So small that the C library takes it from a heap."""

    length: int = 1
    states: bytearray = field(default_factory=lambda: bytearray(b"1" * 100_000))

    @property
    def bytes(self) -> int:
        return len(self.states)

    def fork(self, length: int) -> "SmallCache":
        raise AssertionError(f"no beginning is shared here: {length}")


def test_the_system_gets_memory_back_that_lies_between_what_stays(data_dir: Path) -> None:
    shelf, stays = build_shelf(data_dir), list[bytearray]()
    for number in range(500):
        shelf.prefixes.keep(PrefixOwner(str(number), "", None), [1], SmallCache())
        stays.append(bytearray(1000))
    kept = shelf.prefixes.bytes
    before = psutil.Process().memory_info().rss
    shelf.clear()

    assert before - psutil.Process().memory_info().rss > kept / 2
