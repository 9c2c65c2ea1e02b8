"""The API's own speed: uploads, status polls while a job trains, and large tables.

python benchmarks/api.py uploads     # a minute
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import checks, claims, keys, polls, tables, uploads


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("uploads", help="MiB/s and memory of uploads")
    command.add_argument("--small-mib", type=float, default=4)
    command.add_argument("--large-mib", type=float, default=400)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("checks", help="MiB/s of the check alone, for every format")
    command.add_argument("--mib", type=float, default=24)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("polls", help="latency of polls while a job trains")
    command.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    command.add_argument("--rate", type=float, default=200)
    command.add_argument("--seconds", type=float, default=60)
    command.add_argument("--rounds", type=int, default=3)
    command = commands.add_parser("tables", help="queries with 1,000 and with 1,000,000 jobs")
    command.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    command.add_argument("--small", type=int, default=1000)
    command.add_argument("--large", type=int, default=1_000_000)
    command.add_argument("--rounds", type=int, default=50)
    command = commands.add_parser("claims", help="what fair turns cost a claim")
    command.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    command.add_argument("--claims", type=int, default=1000)
    command = commands.add_parser("keys", help="what an API key costs a poll")
    command.add_argument("--polls", type=int, default=4000)
    command.add_argument("--rate", type=float, default=400)
    command.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.what == "uploads":
        uploads.measure(
            small_mib=options.small_mib, large_mib=options.large_mib, rounds=options.rounds
        )
    elif options.what == "checks":
        checks.measure(mib=options.mib, rounds=options.rounds)
    elif options.what == "claims":
        claims.measure(options.database, claims=options.claims)
    elif options.what == "keys":
        keys.measure(polls=options.polls, rate=options.rate, rounds=options.rounds)
    elif options.what == "tables":
        tables.measure(
            options.database, small=options.small, large=options.large, rounds=options.rounds
        )
    else:
        polls.measure(
            model=options.model,
            rate=options.rate,
            seconds=options.seconds,
            rounds=options.rounds,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
