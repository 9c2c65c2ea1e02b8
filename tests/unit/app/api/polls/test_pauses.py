"""Polls of several clients gather on a busy machine; nobody else is made to wait."""

import asyncio
from collections.abc import Sized
from typing import Any

import pytest

from app.api.polls.pauses import PAUSE_S, Pauses

BUSY = 1e6
LONG_S = 10.0


class Bench:
    """A clock that moves as it is told, and the pauses that were made."""

    def __init__(self, load: float = BUSY) -> None:
        self.slept_s: list[float] = []
        self.now_s = 0.0
        self.pauses = Pauses(read_load=lambda: load, sleep=self.slept_s.append)

    async def poll(self, *clients: int, under_way: Sized = ()) -> None:
        """Answer polls of these clients at the same time."""
        for client in clients:
            self.pauses.after_poll(client, under_way, self.now_s)
        await asyncio.sleep(0)


def run(bench: Bench, *clients: int, **options: Any) -> list[float]:
    asyncio.run(bench.poll(*clients, **options))
    return bench.slept_s


def test_one_pause_follows_the_polls_of_several_clients() -> None:
    assert run(Bench(), 1, 2, 3) == [PAUSE_S]


@pytest.mark.parametrize(
    ("load", "clients", "options"),
    [
        pytest.param(BUSY, [1, 1, 1], {}, id="a single client"),
        pytest.param(0.0, [1, 2], {}, id="an idle machine"),
        pytest.param(BUSY, [1, 2], {"under_way": ["upload"]}, id="another request"),
    ],
)
def test_nobody_waits_in_vain(load: float, clients: list[int], options: dict[str, Any]) -> None:
    assert run(Bench(load), *clients, **options) == []


def test_polls_that_are_far_apart_do_not_gather() -> None:
    bench = Bench()

    for client in (1, 2):
        run(bench, client)
        bench.now_s += PAUSE_S

    assert bench.slept_s == []


def test_pauses_hold_off_for_a_moment_after_anything_else() -> None:
    bench = Bench()
    bench.now_s = LONG_S
    bench.pauses.note_other_work(bench.now_s)

    first = [*run(bench, 1, 2)]
    bench.now_s += LONG_S

    assert first == []
    assert run(bench, 1, 2) == [PAUSE_S]
