"""What the sandbox costs: the same jobs with it and without, in turn.

    python benchmarks/sandbox.py                  # about 10 minutes, on a quiet machine

It runs two real services with the base model of `make model`: one with `TUNERY_SANDBOX=auto`, one
with `off`. Their jobs are alike to the seed, so that each step is compared with the same step.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from benchmarks.start import await_preloading, measure
from tunery.local_service import LocalService

KINDS = ("off", "auto")
FIRST_STEP = 4
"""The first step that counts: the ones before are slower."""


def step_times_s(http: httpx.Client, job_id: str) -> list[float]:
    rows = http.get(f"/fine_tuning/jobs/{job_id}/metrics").raise_for_status().json()["data"]
    ends_s = [row["elapsed_s"] for row in rows]
    return [end - begin for begin, end in pairwise(ends_s)][FIRST_STEP:]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("data/models"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=44)
    options = parser.parse_args(arguments)
    starts_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps_s: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        services: dict[str, tuple[Path, httpx.Client]] = {}
        for kind in KINDS:
            data_dir = Path(name) / kind
            data_dir.mkdir()
            (data_dir / "models").symlink_to(options.models.resolve(strict=True))
            settings = {"sandbox": kind, "warm_s": "3600", "install_default_model": "false"}
            service = stack.enter_context(LocalService(data_dir, settings))
            http = stack.enter_context(httpx.Client(base_url=service.base_url, timeout=60))
            await_preloading(data_dir)
            measure(http, data_dir, options.model, FIRST_STEP)  # the first job of a worker
            services[kind] = data_dir, http
        for _ in range(options.rounds):
            for kind, (data_dir, http) in services.items():
                start = measure(http, data_dir, options.model, options.steps)
                starts_s[kind].append(start.stepped_s)
                steps_s[kind].append(step_times_s(http, start.job_id))
    report(starts_s, steps_s)
    return 0


def report(starts_s: dict[str, list[float]], steps_s: dict[str, list[list[float]]]) -> None:
    """Print medians, and how far they differ."""
    off_s, auto_s = (statistics.median(starts_s[kind]) for kind in KINDS)
    print(f"POST to the first step, sandbox off {off_s:.2f} s, on {auto_s:.2f} s")
    print(f"  the sandbox adds {auto_s - off_s:+.2f} s")
    ratios = [
        statistics.median(auto / off for off, auto in zip(*pair, strict=True))
        for pair in zip(*(steps_s[kind] for kind in KINDS), strict=True)
    ]
    print(f"a step takes {100 * (statistics.median(ratios) - 1):+.1f} % (median of {len(ratios)}")
    print(f"  rounds: {[round(100 * (ratio - 1), 1) for ratio in ratios]} %)")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
