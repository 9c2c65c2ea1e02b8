"""Looks at the pulse of a thread as if it hung now."""

import time

import pytest

from worker.sampling.pulse import LOADING_S, Pulse


def would_be_noticed(pulse: Pulse) -> bool:
    """Whether the thread counts as hanging if it is still where it is after a long time."""
    later_s = time.monotonic() + LOADING_S + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later_s)
        return not pulse.is_steady
