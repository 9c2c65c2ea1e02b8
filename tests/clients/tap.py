"""Runs the tests of a script, and says in the Test Anything Protocol how each has ended."""

import sys
import traceback
from collections.abc import Mapping


def run_tests(names: Mapping[str, object]) -> int:
    """Run each function whose name begins with `test_`. Returns 1 if one has failed."""
    failures = 0
    tests = [act for name, act in names.items() if name.startswith("test_") and callable(act)]
    for number, act in enumerate(tests, start=1):
        name = getattr(act, "__name__", "")
        try:
            act()
        except Exception:
            failures += 1
            sys.stdout.write(f"not ok {number} - {name}\n{traceback.format_exc()}\n")
        else:
            sys.stdout.write(f"ok {number} - {name}\n")
    return min(failures, 1)
