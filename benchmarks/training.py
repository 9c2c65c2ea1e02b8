"""How fast Tunery trains: beside the script it grew out of, TRL, and what is possible at all.

    python -m benchmarks.training                    # reference, TRL, Tunery, in turn: 15 minutes
    python -m benchmarks.training --isa avx2         # the same, held to older instructions
    python -m benchmarks.training search             # which configuration of TRL is the fastest
    python -m benchmarks.training quality --rounds 3 # is the result that of plain float32?
    python -m benchmarks.training service            # what the service costs beside the training
    python -m benchmarks.training large --rounds 1   # the reference's own job, on 1.5B parameters

On a machine that does nothing else. Every part is added to a file of results; `--write` makes
`docs/benchmarks.md` of it. `make bench` installs TRL first, which nothing else needs.
"""

import json
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.options import Options, read_options
from benchmarks.speed import compare_speed, search_variants

_RUN: dict[str, Callable[[Options], dict[str, Any]]] = {
    "speed": compare_speed,
    "search": search_variants,
}


def main(arguments: list[str]) -> int:
    options = read_options(arguments, __doc__)
    for part in options.parts:
        name = part if options.isa == "native" else f"{part}-{options.isa}"
        result = _RUN[part](options)
        _add(options, name, _describe(arguments) | result)
    return 0


def _describe(arguments: list[str]) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "benchmarks.training", *arguments]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
    }


def _add(options: Options, name: str, result: dict[str, Any]) -> None:
    path = options.results
    results = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results | {name: result}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
