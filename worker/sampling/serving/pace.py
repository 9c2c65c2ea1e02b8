"""How much is computed in one step, with how many threads, and how long the sampler then rests."""

import torch

STEP_S = 0.1
"""Time that a step with prompts in it is to take. Between steps, answers go on and requests that
were cancelled are dropped, so this is what the others notice of a long prompt."""

FEWEST, MOST = 16, 256
"""Limits of the prompt tokens in one step."""

SHARE_BESIDE_TRAINING = 0.25
"""Share of the time in which the sampler computes while a job trains, with one thread."""

_NEWEST = 0.3
"""Weight of the newest measurement in the average."""


class Pace:
    """Measures steps. One for each process.

    Args:
        threads: CPU threads while no job trains.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._token_s: float | None = None

    def use_threads(self, *, trains: bool) -> None:
        """Set the threads of the calling thread's operations."""
        threads = 1 if trains else self._threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    @property
    def budget(self) -> int:
        """Number of prompt tokens to read in the next step."""
        if self._token_s is None:
            return FEWEST
        return max(FEWEST, min(MOST, int(STEP_S / self._token_s)))

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step in which so many tokens were read, if it had enough of them."""
        if tokens < FEWEST:
            return
        token_s = seconds / tokens
        known = token_s if self._token_s is None else self._token_s
        self._token_s = known + _NEWEST * (token_s - known)


def rest_after(seconds: float, *, trains: bool) -> float:
    """How long to rest after a step of so many seconds."""
    return seconds * (1 / SHARE_BESIDE_TRAINING - 1) if trains else 0.0
