"""Attack a service with malformed requests: python -m tests.malformed.run [--bodies 100000]

Prints what was answered, and the slowest answer that another client got meanwhile. The exit code
is 1 if an answer had a status of 500 or more, or if the other client waited for over 100 ms.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.support.samples import write_catalogue
from tests.malformed.attack import RECEIVE_TIMEOUT_S, Outcome, attack
from tests.malformed.corpus import corpus, malformed_bodies
from tunery.local_service import LocalService

MAX_PROBE_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=100_000)
    bodies = parser.parse_args().bodies
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name)
        write_catalogue(data_dir)
        settings = {"min_free_bytes": "0", "receive_timeout_s": str(RECEIVE_TIMEOUT_S)}
        with LocalService(data_dir, settings, workers=0) as service:
            began_s = time.perf_counter()
            outcome = attack(service.url, itertools.chain(corpus(), malformed_bodies(bodies)))
            print(f"{time.perf_counter() - began_s:.0f} s")
            service.check()
    report(outcome)
    sys.exit(int(bool(outcome.failures) or outcome.probe.slowest_s > MAX_PROBE_S))


def report(outcome: Outcome) -> None:
    print(f"{outcome.statuses.total():,} attacks")
    for status, count in sorted(outcome.statuses.items(), key=lambda item: str(item[0])):
        print(f"  {status or 'closed'}: {count:,}")
    for failure in outcome.failures:
        print(f"  FAILED {failure}")
    print(f"slowest of {outcome.probe.answers:,} probes: {1000 * outcome.probe.slowest_s:.0f} ms")


if __name__ == "__main__":
    main()
