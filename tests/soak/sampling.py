"""Asks models for long, and checks that API and sampler do not grow.

    python -m tests.soak.sampling               # 20 minutes

Two projects chat, complete texts, stream, hold answers to schemas, leave in the middle, ask badly,
and import and delete adapters. The sampler may fill so little memory that models, adapters and
prompts leave all the time. The first quarter is left out, because caches fill up then, which takes
two minutes. The exit code is 1 if memory grows faster than its limit in `tests/soak/trends.py`, if
a process was restarted, or if an answer has the wrong status.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.asking.service import AskedService, import_random_adapter, install_asked_model
from tests.sampled_models import write_random_adapter
from tests.soak.measure import INTERVAL_S, memory_of
from tests.soak.questions import Questions
from tests.soak.run import Outcome, print_report
from tests.soak.trends import MEMORY, Metric, Point, judge_trends
from tests.waiting import wait_until

PROJECTS = ("red", "blue")
ADAPTERS = 3
"""Tuned models of each project."""

MEMORY_BYTES = 64 * 1024**2
START_S = 60.0


def ask_for(
    data_dir: Path,
    directory: Path,
    *,
    minutes: float,
    seed: int,
    is_enough: Callable[[Counter[int]], bool] = bool,
) -> Outcome:
    """Ask the models of a new service for some minutes, and measure it.

    Args:
        data_dir: has the model of `install_asked_model`.
        directory: a directory for adapters.
        minutes: how long at least.
        seed: decides what is asked.
        is_enough: whether these numbers of answers, by status, are enough to end.
    """
    service = AskedService(
        data_dir,
        workers=0,
        sampling_memory_bytes=str(MEMORY_BYTES),
        bootstrap_key_file=str(data_dir / "first-key"),
    )
    with service, ExitStack() as asking:
        questions = [
            _make_project(service, directory / name, name, seed=seed + number)
            for number, name in enumerate(PROJECTS)
        ]
        for each in questions:
            asking.enter_context(each)
        series = _measure(
            service,
            lambda seconds: seconds >= 60 * minutes and is_enough(_count_statuses(questions)),
        )
    problems = [problem for each in questions for problem in each.answers.problems]
    return Outcome(judge_trends(series, minutes=minutes), problems, _count_statuses(questions))


def _count_statuses(questions: Sequence[Questions]) -> Counter[int]:
    return sum((each.answers.statuses.copy() for each in questions), Counter[int]())


def _make_project(service: AskedService, directory: Path, name: str, *, seed: int) -> Questions:
    """A project with tuned models of its own."""
    base = service.data_dir / "models" / "tiny"
    directory.mkdir()
    key = service.new_project(name)
    with service.client(key) as client:
        models = [
            import_random_adapter(client, base, directory / str(number), seed=100 * seed + number)
            for number in range(ADAPTERS)
        ]
    adapter = write_random_adapter(directory / "other", base, seed=seed)
    return Questions(service.base_url, key, ["tiny", *models], adapter, seed=seed)


def _measure(service: AskedService, is_over: Callable[[float], bool]) -> dict[Metric, list[Point]]:
    """Memory of all processes over time.

    Args:
        service: runs, and is asked.
        is_over: whether to stop after so many seconds.

    Raises:
        ServiceError: the API or the keeper has ended.
        psutil.NoSuchProcess: the process that samples has.
    """
    keeper = psutil.Process(service.processes["sampler"].pid)
    child = wait_until(lambda: keeper.children(recursive=True), within_s=START_S)[-1]
    pids = {"api": service.processes["api"].pid, "keeper": keeper.pid, "sampler": child.pid}
    series: dict[Metric, list[Point]] = defaultdict(list)
    began_s = time.monotonic()
    while not is_over(now_s := time.monotonic() - began_s):
        service.check()
        child.status()
        for name, pid in pids.items():
            series[name, MEMORY].append((now_s, memory_of(pid)))
        time.sleep(INTERVAL_S)
    return series


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(16)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        install_asked_model(data_dir, source=Path(directory) / "hub" / "our-tiny")
        outcome = ask_for(data_dir, Path(directory), minutes=options.minutes, seed=seed)
    print_report(outcome)
    return 0 if outcome.is_ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
