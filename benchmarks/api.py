"""The API's own speed: uploads, status polls while a job trains, and large tables.

python benchmarks/api.py uploads     # a minute
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import (
    checks,
    checks_beside,
    claims,
    keys,
    polls,
    sampling_beside,
    tables,
    uploads,
    watchers,
)

_MODEL = Path("data/models/smollm2-135m-instruct")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    _add_files(commands)
    _add_jobs(commands)
    options = vars(parser.parse_args(arguments))
    del options["what"]
    options.pop("measure")(**options)
    return 0


def _add_files(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("uploads", help="MiB/s and memory of uploads")
    command.set_defaults(measure=uploads.measure)
    command.add_argument("--small-mib", type=float, default=4)
    command.add_argument("--large-mib", type=float, default=400)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("checks", help="MiB/s of the check alone, for every format")
    command.set_defaults(measure=checks.measure)
    command.add_argument("--mib", type=float, default=24)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("beside", help="what checks of data cost a job that trains")
    command.set_defaults(measure=checks_beside.measure)
    command.add_argument("--model", type=Path, default=_MODEL)
    command.add_argument("--rows", type=int, default=10_000)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser(
        "sampling", help="what requests to a model cost a job that trains"
    )
    command.set_defaults(measure=sampling_beside.measure)
    command.add_argument("--model", type=Path, default=_MODEL)
    command.add_argument("--mode", choices=["idle", "shared"], default="shared")
    command.add_argument("--clients", type=int, default=4)
    command.add_argument("--seconds", type=float, default=30)
    command.add_argument("--rounds", type=int, default=3)


def _add_jobs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("polls", help="latency of polls while a job trains")
    command.set_defaults(measure=polls.measure)
    command.add_argument("--model", type=Path, default=_MODEL)
    command.add_argument("--rate", type=float, default=200)
    command.add_argument("--seconds", type=float, default=22)
    command.add_argument("--rounds", type=int, default=5)
    command = commands.add_parser("watchers", help="what many streams of a job cost its training")
    command.set_defaults(measure=watchers.measure)
    command.add_argument("--model", type=Path, default=_MODEL)
    command.add_argument("--readers", type=int, default=200)
    command.add_argument("--seconds", type=float, default=30)
    command.add_argument("--rounds", type=int, default=5)
    command = commands.add_parser("tables", help="queries with 1,000 and with 1,000,000 jobs")
    command.set_defaults(measure=tables.measure)
    command.add_argument(
        "--database", dest="kind", choices=["sqlite", "postgresql"], default="sqlite"
    )
    command.add_argument("--small", type=int, default=1000)
    command.add_argument("--large", type=int, default=1_000_000)
    command.add_argument("--rounds", type=int, default=50)
    command = commands.add_parser("claims", help="what fair turns cost a claim")
    command.set_defaults(measure=claims.measure)
    command.add_argument(
        "--database", dest="kind", choices=["sqlite", "postgresql"], default="sqlite"
    )
    command.add_argument("--claims", type=int, default=1000)
    command = commands.add_parser("keys", help="what an API key costs a poll")
    command.set_defaults(measure=keys.measure)
    command.add_argument("--polls", type=int, default=4000)
    command.add_argument("--rate", type=float, default=400)
    command.add_argument("--rounds", type=int, default=5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
