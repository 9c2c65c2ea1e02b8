"""Speaks to a real sampler as the API does, or worse."""

import hashlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import psutil

from app.core.base_models import load_catalogue
from app.core.sampling.messages import (
    ANSWERS,
    HEAD,
    Accepted,
    AdapterRef,
    Alive,
    Ask,
    Delta,
    Finished,
    Refused,
    SamplingParameters,
    TextPrompt,
)
from app.core.sampling.socket_path import socket_path
from tests.sampled_models import write_random_adapter
from tests.waiting import wait_until
from tunery.local_service import LocalService

PATIENCE_S = 120.0


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter of the tiny model in files."""

    weights: Path
    config: Path

    @classmethod
    def make(cls, directory: Path, base: Path, *, seed: int) -> Self:
        write_random_adapter(directory, base, seed=seed)
        return cls(directory / "adapter_model.safetensors", directory / "adapter_config.json")

    @property
    def ref(self) -> AdapterRef:
        weights, config = (
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.weights, self.config)
        )
        return AdapterRef(weights_sha256=weights, config_sha256=config)


def build_ask(data_dir: Path, text: str = "Once", **changes: Any) -> Ask:
    """A request to the tiny model of a data directory, greedy unless a change says otherwise."""
    catalogue = load_catalogue(data_dir)
    record = catalogue.find_installed("tiny")
    assert record is not None
    usual = {
        "project_id": "proj_1",
        "base_model": catalogue.directory("tiny"),
        "base_model_sha256": record.sha256,
        "prompt": TextPrompt(text=text),
        "parameters": SamplingParameters(temperature=0, max_tokens=12),
    }
    return Ask(**(usual | changes))


def endless(**changes: Any) -> SamplingParameters:
    """Parameters of an answer that does not end in the time of a test."""
    never: dict[int, float] = dict.fromkeys((256, 257, 258), -100.0)
    return SamplingParameters(temperature=0, max_tokens=60_000, logit_bias=never, **changes)


def kill_child(service: LocalService) -> None:
    """Kill the process that answers. The keeper starts another one."""
    keeper = psutil.Process(service.processes["sampler"].pid)

    def kill() -> bool:
        for child in keeper.children():
            with suppress(ProcessLookupError):  # it has just ended, or just begun
                os.killpg(child.pid, signal.SIGKILL)
                return True
        return False

    wait_until(kill, within_s=PATIENCE_S)


class Call:
    """One connection to a sampler."""

    def __init__(self, sampler_dir: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_path(sampler_dir) as path:
            self.socket.connect(path)
        self.socket.settimeout(PATIENCE_S)
        self._lines: BinaryIO = self.socket.makefile("rb")

    @classmethod
    def of(cls, sampler_dir: Path, ask: Ask, adapter: SavedAdapter | None = None) -> Self:
        """Connect and send a request."""
        call = cls(sampler_dir)
        call.ask(ask, adapter)
        return call

    def ask(self, ask: Ask, adapter: SavedAdapter | None = None) -> None:
        """Send a request, with the files of its adapter."""
        paths = (adapter.weights, adapter.config) if adapter else ()
        with ExitStack() as files:
            descriptors = [files.enter_context(path.open("rb")).fileno() for path in paths]
            self.send(ask.model_dump_json().encode(), descriptors)

    def send(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [HEAD.pack(len(body))], descriptors)
        self.socket.sendall(body)

    def answers(self) -> Iterator[Accepted | Delta | Finished | Refused]:
        """All answers until the sampler closes the connection, which is then closed here too.

        `Alive` is left out.
        """
        for line in self._lines:
            answer = ANSWERS.validate_json(line)
            if not isinstance(answer, Alive):
                yield answer
        self.close()

    def next(self) -> Accepted | Delta | Finished | Refused:
        return next(self.answers())

    def text(self) -> str:
        """The text of a whole answer to a request that is not refused."""
        texts: list[str] = []
        for answer in self.answers():
            assert not isinstance(answer, Refused), answer
            if isinstance(answer, Delta):
                texts.append(answer.text)
        return "".join(texts)

    def close(self) -> None:
        self._lines.close()
        self.socket.close()
