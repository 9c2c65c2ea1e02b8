"""How fast Tunery trains: beside the script it grew out of, TRL, and what is possible at all.

    python -m benchmarks.training                    # reference, TRL, Tunery, in turn: 15 minutes
    python -m benchmarks.training --isa avx2         # the same, held to older instructions
    python -m benchmarks.training --data system-prompt --batch-size 16   # other data
    python -m benchmarks.training sizes              # base models of four sizes: 40 minutes
    python -m benchmarks.training search             # which configuration of TRL is the fastest
    python -m benchmarks.training quality --rounds 3 # is the result that of plain float32?
    python -m benchmarks.training layers             # three epochs on the upper half alone
    python -m benchmarks.training service            # what the service costs beside the training
    python -m benchmarks.training large --rounds 1   # the reference's own job, on 1.5B parameters
    python -m benchmarks.training tight              # 7B parameters in 20 GiB, as root
    python -m benchmarks.training estimates          # what ten jobs should take, and what they took

On a machine that does nothing else. Every part is added to a file of results; `--write` makes
`docs/benchmarks.md` of it. `make bench` installs TRL first, which nothing else needs. The exit code
is 1 where the quality is not that of plain float32.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from benchmarks.estimates import measure_estimates
from benchmarks.large import compare_large
from benchmarks.machine import ISAS, describe_machine
from benchmarks.options import ROOT, Options, read_options
from benchmarks.quality import compare_quality
from benchmarks.report import load_results, write_report
from benchmarks.service import measure_service
from benchmarks.sizes import compare_sizes
from benchmarks.speed import compare_speed, search_variants
from benchmarks.tight import measure_tight
from benchmarks.upper_layers import compare_layers

_RUN: dict[str, Callable[[Options], dict[str, Any]]] = {
    "speed": compare_speed,
    "search": search_variants,
    "sizes": compare_sizes,
    "quality": compare_quality,
    "layers": compare_layers,
    "service": measure_service,
    "large": compare_large,
    "tight": measure_tight,
    "estimates": measure_estimates,
}
_PATHS = {"--model", "--cache", "--results"}


def main(arguments: list[str]) -> int:
    options = read_options(arguments, __doc__)
    os.environ.update(ISAS[options.isa])  # the service takes them from here
    is_good = True
    for part in options.parts:
        result = _RUN[part](options)
        is_good &= result.get("is_equal", True)
        _add(options, _name(part, options), _describe(arguments) | result)
    if options.write:
        write_report(load_results(options.results), ROOT / "docs")
    return 0 if is_good else 1


def _name(part: str, options: Options) -> str:
    """The key of a result: each kind of data, and each set of instructions, has its own."""
    of_data = [options.data, str(options.batch_size)] if options.data != "docstrings" else []
    of_isa = [options.isa] if options.isa != "native" else []
    return "-".join([part, *of_data, *of_isa])


def _describe(arguments: list[str]) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "benchmarks.training", *_without_paths(arguments)]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
    }


def _without_paths(arguments: list[str]) -> list[str]:
    """What was asked, less where things are on this machine."""
    kept: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument not in {*_PATHS, "--write"} and before not in _PATHS:
            kept.append(argument)
    return kept


def _add(options: Options, name: str, result: dict[str, Any]) -> None:
    path = options.results
    path.parent.mkdir(parents=True, exist_ok=True)
    results = load_results(path) | {name: result}
    path.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
