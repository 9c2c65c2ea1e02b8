"""How much the tests that search or attack at random try in one run."""

import os

IS_LONG = os.environ.get("TUNERY_TEST_LONG") == "1"
"""Whether this is `make long`, which has hours; `make test` has minutes."""


def effort(usual: int, *, long: int) -> int:
    return long if IS_LONG else usual
