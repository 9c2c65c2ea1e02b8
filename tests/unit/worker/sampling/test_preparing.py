"""Requests are prepared in two threads: what must be loaded holds nobody else up."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from app.core.job.child.job_spec import ComputeSettings
from app.core.sampling.messages import Refused
from tests.pulses import would_be_noticed
from tests.sampler_client import SavedAdapter, build_ask
from tests.tiny import install_tiny_model
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.options import ServingOptions
from worker.sampling.serving.preparing import Preparer
from worker.sampling.serving.requests import Request, Told
from worker.sampling.serving.shelf import Shelf

MEMORY_BYTES = 2**30


class Panic(BaseException):
    """What a library in Rust raises."""


class Heard:
    """An outlet that keeps what it gets."""

    def __init__(self) -> None:
        self.answers: list[Told] = []
        self.is_over = False

    def send(self, answers: Sequence[Told], *, is_last: bool) -> None:
        self.answers += answers
        self.is_over = is_last


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    install_tiny_model(directory, source=tmp_path_factory.mktemp("hub") / "tiny")
    return directory


@pytest.fixture(scope="module")
def adapter(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedAdapter:
    directory = tmp_path_factory.mktemp("adapters") / "1"
    return SavedAdapter.make(directory, data_dir / "models" / "tiny", seed=1)


class Office:
    """A desk with the two threads that prepare, which do nothing until they are told to."""

    def __init__(self, data_dir: Path) -> None:
        options = ServingOptions(
            mode="shared",
            memory_bytes=MEMORY_BYTES,
            queue=9,
            threads=1,
            models=data_dir / "models",
            speeds=data_dir / "speeds",
            compute=ComputeSettings(dtype="float32"),
        )
        self._data_dir = data_dir
        self._requests: list[Request] = []
        self.desk = Desk(queue=9, mode="shared")
        self.shelf = Shelf(options)
        self.loads = Preparer(self.desk, self.shelf, loads=True)
        self.encodes = Preparer(self.desk, self.shelf, loads=False)

    def submit(
        self, adapter: SavedAdapter | None = None, *, opened: Callable[[Path], Any] = FileIO
    ) -> Request:
        files = [opened(adapter.weights), opened(adapter.config)] if adapter else []
        ask = build_ask(self._data_dir, adapter=adapter and adapter.ref)
        request = Request(ask, files, Heard())
        self._requests.append(request)
        self.desk.submit(request)
        return request

    def close(self) -> None:
        for request in self._requests:
            request.end()

    def collect(self) -> list[Request]:
        return [running.request for running in self.desk.collect(waits=False)]


@pytest.fixture
def office(data_dir: Path) -> Iterator[Office]:
    with closing(Office(data_dir)) as office:
        yield office


def code_of(request: Request) -> str:
    assert isinstance(request.outlet, Heard)
    (refused,) = request.outlet.answers
    assert isinstance(refused, Refused)
    return refused.code


def test_a_request_that_needs_no_loading_passes_one_that_does(
    office: Office, adapter: SavedAdapter
) -> None:
    first = office.submit()
    office.loads.run_once()
    assert office.collect() == [first]

    tuned, base = office.submit(adapter), office.submit()
    office.encodes.run_once()
    assert office.collect() == [base]
    office.loads.run_once()
    assert office.collect() == [tuned]
    again = office.submit(adapter)
    office.encodes.run_once()
    assert office.collect() == [again]


def test_nothing_more_is_loaded_for_a_client_that_has_left(
    office: Office, adapter: SavedAdapter
) -> None:
    request = office.submit(adapter)
    taken = office.desk.take(lambda each: each is request)
    assert taken is request
    office.desk.cancel(request)
    office.loads.prepare(request)

    assert not office.collect()
    assert not office.shelf.has(request.ask)
    assert isinstance(request.outlet, Heard)
    assert request.outlet.is_over
    for file in request.files:
        with pytest.raises(ValueError, match="closed"):
            os.fstat(file.fileno())


def test_a_request_that_cannot_be_prepared_makes_room_for_others(
    office: Office, adapter: SavedAdapter, tmp_path: Path
) -> None:
    damaged = tmp_path / "weights"
    damaged.write_bytes(b"\0" * 100)
    bad = office.submit(SavedAdapter(damaged, adapter.config))
    office.loads.run_once()
    office.shelf.clear()

    assert code_of(bad) == "adapter_damaged"
    assert not office.shelf.has(office.submit().ask)


def test_what_has_left_since_its_turn_came_is_left_to_the_thread_that_loads(office: Office) -> None:
    request = office.submit()
    assert office.desk.take(lambda _: True) is request
    office.encodes.prepare(request)
    assert not office.collect()
    office.loads.run_once()

    assert office.collect() == [request]


def test_a_base_model_waits_until_there_is_room_for_it(office: Office) -> None:
    office.shelf.reserve(MEMORY_BYTES)
    request = office.submit()
    office.loads.run_once()
    assert not request.has_ended
    office.shelf.reserve(0)
    office.loads.run_once()

    assert office.collect() == [request]


def test_nobody_waits_for_room_for_ever(office: Office) -> None:
    office.shelf.reserve(MEMORY_BYTES)
    request = office.submit()
    Preparer(office.desk, office.shelf, loads=True, patience_s=0).run_once()

    assert code_of(request) == "sampler_memory"


def test_a_client_that_leaves_does_not_wait_for_room(office: Office) -> None:
    office.shelf.reserve(MEMORY_BYTES)
    request = office.submit()
    office.loads.run_once()
    office.desk.cancel(request)
    office.loads.run_once()

    assert request.has_ended


def test_what_fails_in_rust_ends_only_its_request(office: Office, adapter: SavedAdapter) -> None:
    class PanickingFile(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise Panic

    bad = office.submit(adapter, opened=PanickingFile)
    office.loads.run_once()

    assert code_of(bad) == "sampling_failed"


def test_loading_that_does_not_end_is_noticed(office: Office, adapter: SavedAdapter) -> None:
    noticed: list[bool] = []

    class SlowFile(FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            noticed.append(would_be_noticed(office.loads.pulse))
            return super().read(size) or b""

    office.submit(adapter, opened=SlowFile)
    office.loads.run_once()

    assert noticed
    assert all(noticed)
    assert not would_be_noticed(office.loads.pulse)
