"""Attack a service with malformed requests: python -m tests.malformed.run [--bodies 100000]

First, all are sent, eight at a time. Then each of the corpus is sent alone, while another client
polls: that shows which one blocks others. The exit code is 1 if an answer had a status of 500 or
more, or if one attack alone made the other client wait for over 100 ms each time it was sent.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.support.samples import write_catalogue
from tests.malformed.attack import RECEIVE_TIMEOUT_S, Outcome, attack, send
from tests.malformed.corpus import Attack, corpus, malformed_bodies
from tests.malformed.probe import probing
from tunery.local_service import LocalService

MAX_PROBE_S = 0.1
_TRIES = 3
_SHOWN = 10


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
            report(outcome)
            slowest = sorted(
                ((blocking_s(service.url, each), each.name) for each in corpus()), reverse=True
            )
            service.check()
    print("what another client waits for while one attack is sent alone:")
    for waited_s, name in slowest[:_SHOWN]:
        print(f"  {1000 * waited_s:.0f} ms: {name[:80]}")
    sys.exit(int(bool(outcome.failures) or slowest[0][0] > MAX_PROBE_S))


def blocking_s(url: str, each: Attack) -> float:
    """Seconds that another client waits at most while the attack is sent.

    A wait above the limit counts only if it repeats: the machine has other things to do, too.
    """
    waits_s: list[float] = []
    while len(waits_s) < _TRIES and (not waits_s or min(waits_s) > MAX_PROBE_S):
        with probing(url) as probe:
            send(url, each.request)
        waits_s.append(probe.slowest_s)
    return min(waits_s)


def report(outcome: Outcome) -> None:
    print(f"{outcome.statuses.total():,} attacks")
    for status, count in sorted(outcome.statuses.items(), key=lambda item: str(item[0])):
        print(f"  {status or 'closed'}: {count:,}")
    for failure in outcome.failures:
        print(f"  FAILED {failure}")
    print(f"slowest of {outcome.probe.answers:,} probes: {1000 * outcome.probe.slowest_s:.0f} ms")


if __name__ == "__main__":
    main()
