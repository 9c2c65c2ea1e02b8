"""The API's side of the sampler's socket, with samplers that hang."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.errors import SamplerUnavailableError
from app.core.sampling.channel import Channel, Progress
from app.core.sampling.messages import Accepted, Alive, Ask, Delta, Finished, TextPrompt
from tests.standin_sampler import PATIENCE_S, Asked, Said, StandInSampler
from tests.waiting import wait_until
from worker.sampling.private_socket import listening_in

AT_ONCE_S = 0.2
PATIENT_S = 2.0
"""Longer than a busy machine lets a thread wait for its turn."""

MORE_THAN_A_SOCKET_TAKES = 4 * 1024**2
ANSWERS = (
    Accepted(prompt_tokens=1, cached_tokens=0),
    Delta(choice=0, text="Well"),
    Finished(choice=0, reason="stop", tokens=1),
)


async def ask(
    directory: Path, text: str = "Once", *, silence_s: float = AT_ONCE_S
) -> list[Progress]:
    request = Ask(
        project_id="proj_1",
        base_model=Path("tiny"),
        base_model_sha256="b" * 64,
        prompt=TextPrompt(text=text),
    )
    channel = await Channel.open(directory, request, (), silence_s=silence_s)
    try:
        return [answer async for answer in channel.answers()]
    finally:
        channel.close()


def say_nothing(asked: Asked) -> Iterator[Said]:
    asked.has_left.wait(PATIENCE_S)
    yield from ()


def fall_silent(asked: Asked) -> Iterator[Said]:
    yield from ANSWERS[:2]
    asked.has_left.wait(PATIENCE_S)


def show_life(asked: Asked) -> Iterator[Said]:
    """Answer only after longer than a sampler may be silent."""
    for _ in range(6):
        yield Alive()
        asked.has_left.wait(PATIENT_S / 5)
    for answer in ANSWERS:
        yield answer
        yield Alive()


@pytest.mark.parametrize("script", [say_nothing, fall_silent])
def test_a_sampler_that_says_nothing_is_given_up(
    tmp_path: Path, script: Callable[[Asked], Iterator[Said]]
) -> None:
    with StandInSampler(tmp_path, script) as sampler:
        with pytest.raises(SamplerUnavailableError, match="nothing for"):
            asyncio.run(ask(tmp_path))

        asked = wait_until(lambda: sampler.asked, within_s=PATIENCE_S)
        assert asked[0].has_left.wait(PATIENCE_S)


def test_a_sampler_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    with StandInSampler(tmp_path, show_life):
        assert asyncio.run(ask(tmp_path, silence_s=PATIENT_S)) == list(ANSWERS)


def test_a_socket_from_which_nobody_reads_holds_no_request(tmp_path: Path) -> None:
    with (
        listening_in(tmp_path),
        pytest.raises(SamplerUnavailableError, match="nothing for"),
    ):
        asyncio.run(ask(tmp_path, "x" * MORE_THAN_A_SOCKET_TAKES))
