"""Uses the real service for long, and checks that nothing grows that should not.

    python -m tests.soak.run                                     # 20 minutes on SQLite
    python -m tests.soak.run --minutes 5 --database postgresql

Several clients upload, train, poll, download, cancel, pause and delete at a steady rate, with keys,
webhooks, broken uploads and dropped connections. What the processes take is measured meanwhile. The
first quarter is left out, because caches and pools fill up then. The exit code is 1 if a figure
grows faster than its limit in `tests/soak/trends.py`, if something is left after the load, or if
the service gave a wrong answer.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.core.db.session import Database
from benchmarks.support.databases import new_database
from tests.soak.load import EVENT_TYPES, Load
from tests.soak.measure import Meter
from tests.soak.trends import Row, Sample, judge_rest, judge_trends
from tests.tiny import install_tiny_model
from tests.waiting import wait_until
from tests.webhooks import LOOPBACK, Receiver, receiving
from tunery.local_service import LocalService

FIRST_JOB_S = 120.0
REST_S = 60.0
"""How long the service may take to come to rest after the load, in seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    rows: list[Row]
    problems: list[str]
    statuses: Counter[int] = field(default_factory=Counter)
    """Answers by their status, if they were counted."""

    @property
    def is_ok(self) -> bool:
        return not self.problems and all(row.is_ok for row in self.rows)


def soak(data_dir: Path, url: str, *, minutes: float, seed: int) -> Outcome:
    """Use a new service for some minutes, and measure it.

    Args:
        data_dir: has the base model `tiny`.
        url: of an empty database.
    """
    with receiving() as receiver, _serving(data_dir, url, receiver) as (service, key):
        database = Database(url)
        load = Load(service.base_url, key, database, receiver, seed=seed)
        _create_endpoint(load, receiver)
        meter = Meter(service, database)
        stored = meter.measure_data()
        with load:  # fills the pools, and starts whatever is only started once
            _await_first_job(load)
        load.clear()
        before = {**meter.measure_rest(), **stored}
        with load:
            meter.watch(seconds=60 * minutes)
        load.clear()
        after = _await_rest(load, meter, before)
        database.dispose()
    rows = judge_trends(meter.series, minutes=minutes) + judge_rest(before, after)
    return Outcome(rows, load.answers.problems + meter.problems, load.answers.statuses)


@contextmanager
def _serving(data_dir: Path, url: str, receiver: Receiver) -> Generator[tuple[LocalService, str]]:
    """An API and a worker. Yields its first key as well, which has every scope."""
    key_file = data_dir / "first-key"
    settings = {
        "database_url": url,
        "bootstrap_key_file": str(key_file),
        "install_default_model": "false",
        "training_threads": "1",
        "training_dtype": "float32",
        "webhook_targets": receiver.origin,
        "webhook_private_networks": LOOPBACK,
    }
    with LocalService(data_dir, settings) as service:
        yield service, key_file.read_text().strip()


def _create_endpoint(load: Load, receiver: Receiver) -> None:
    client = load.open_client()
    body = {"name": "a", "url": f"{receiver.origin}/a", "event_types": EVENT_TYPES}
    client.ask("POST", "/webhook_endpoints", json=body)
    client.close()


def _await_first_job(load: Load) -> None:
    client = load.open_client()
    wait_until(
        lambda: any(job["status"] == "succeeded" for job in client.list_jobs()),
        within_s=FIRST_JOB_S,
    )
    client.close()


def _await_rest(load: Load, meter: Meter, before: Sample) -> Sample:
    """The figures after the load, as soon as they are as low as before, or when the time is up."""
    client = load.open_client()
    after: Sample = {}

    def is_at_rest() -> bool:
        nonlocal after
        client.ask("GET", "/files")  # the API ends idle threads when it gets a request
        after = meter.measure_rest()
        return all(row.is_ok for row in judge_rest(before, after))

    with suppress(AssertionError):  # the rows say what is left
        wait_until(is_at_rest, within_s=REST_S)
    client.close()
    return after


def print_report(outcome: Outcome) -> None:
    line = "{:<24} {:<22} {:>9} {:>9} {:>9} {:>7} {:<9} {}".format
    print(line("what", "figure", "start", "end", "measured", "limit", "", ""))
    for row in outcome.rows:
        verdict = "ok" if row.is_ok else "TOO MUCH"
        figures = [f"{value:.1f}" for value in (row.start, row.end, row.measured, row.limit)]
        print(line(*row.metric, *figures, row.unit, verdict))
    if outcome.statuses:
        print(
            "answers:", ", ".join(f"{n} x {status}" for status, n in outcome.statuses.most_common())
        )
    for problem in outcome.problems[:50]:
        print(f"PROBLEM {problem}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        install_tiny_model(data_dir, source=Path(directory) / "hub" / "our-tiny")
        with new_database(options.database, data_dir) as url:
            outcome = soak(data_dir, url, minutes=options.minutes, seed=seed)
    print_report(outcome)
    return 0 if outcome.is_ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
