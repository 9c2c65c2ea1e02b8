"""`python -m benchmarks.scheduling`: claims, polls and whole fleets, with a queue of any length.

python -m benchmarks.scheduling claims --jobs 1000000
python -m benchmarks.scheduling fleet --jobs 1000000 --workers 1000 --ends 30000
python -m benchmarks.scheduling idle --workers 1000
"""

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from app.core.clock import utc_now
from app.core.db.session import Database
from benchmarks.scheduling import claims, idle
from benchmarks.scheduling.fleet import Fleet
from benchmarks.scheduling.load import Load, counting
from benchmarks.scheduling.plans import Outcome, Plan
from benchmarks.scheduling.queues import (
    START,
    Tenant,
    add_jobs,
    filled,
    server,
    tenants,
    vacuum,
)

LATE = Tenant("proj-late", 10)
LATE_S = 3600.0
"""When a project comes with a few jobs behind all others, in seconds."""


def measure_claims(*, jobs: int, connections: list[int], seconds: float) -> None:
    """Print what claims cost with short queues and with one of so many jobs."""
    with server() as postgres:
        for length in sorted({10_000, min(100_000, jobs), jobs}):
            began_s = time.perf_counter()
            with filled(postgres, []) as database:
                claims.add_cases(database, length // len(claims.CASES))
                print(f"{length:,} queued jobs, filled in {time.perf_counter() - began_s:.0f} s",
                      flush=True)  # fmt: skip
                _print_costs(database, length)
                claims.show_only(database, "all fit")
                for number in connections:
                    before_s = postgres.processor_s()
                    found = claims.measure_claims(database, connections=number, seconds=seconds)
                    server_ms = 1000 * (postgres.processor_s() - before_s) / found.number
                    print(f"  {number:3} connections: {found.per_second:5.0f} claims/s, p50 "
                          f"{found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms, "
                          f"{found.busy} times busy, {server_ms:.2f} ms of the server's "
                          "processors each", flush=True)  # fmt: skip
                with database.engine.connect() as backup:
                    held = backup.execution_options(isolation_level="REPEATABLE READ")
                    held.exec_driver_sql("SET idle_in_transaction_session_timeout = 0")
                    held.exec_driver_sql("SELECT count(*) FROM projects")
                    found = claims.measure_claims(database, connections=4, seconds=2 * seconds)
                    print(f"  after {found.number} claims while a backup holds its snapshot: a "
                          f"poll {claims.cost_of_poll(database, claims.BIG)}; a claim "
                          f"{claims.cost_of_claim(database, claims.BIG)}", flush=True)  # fmt: skip
    measure_running(jobs=min(40_000, jobs))


def _print_costs(database: Database, jobs: int) -> None:
    """Print what claims read where all jobs fit the worker, and where most do not."""
    for name in claims.CASES:
        claims.show_only(database, name)
        print(f"  {jobs // len(claims.CASES):,} jobs, {name}: a poll "
              f"{claims.cost_of_poll(database, claims.SMALL)}; a claim "
              f"{claims.cost_of_claim(database, claims.SMALL)}", flush=True)  # fmt: skip
    claims.show_only(database, None)
    print(f"  all {jobs:,} jobs, of {len(claims.CASES)} projects: a claim "
          f"{claims.cost_of_claim(database, claims.SMALL)}; a poll of a worker that none fits "
          f"{claims.cost_of_poll(database, claims.TINY)}", flush=True)  # fmt: skip


def measure_running(*, jobs: int) -> None:
    """Print what a poll and a claim read while ever more jobs run."""
    with server() as postgres, filled(postgres, tenants(jobs)) as database:
        running = 0
        for more in (0, jobs // 400, jobs // 40, jobs // 4):
            values = {"number": more, "until": utc_now() + claims.MINUTE}
            with database.writing() as session:
                session.execute(claims.RUN_FIRST, values)
            vacuum(database)
            running += more
            print(f"{running:,} running jobs: a poll "
                  f"{claims.cost_of_poll(database, claims.BIG)}; a claim "
                  f"{claims.cost_of_claim(database, claims.BIG)}", flush=True)  # fmt: skip


def run_fleet(
    *, jobs: int, workers: int, ends: int | None, minutes: float, seed: int
) -> tuple[Outcome, Load]:
    """Simulate a fleet, and print what came of it."""
    queue = tenants(jobs, limit=max(1, workers // 20))
    plan = Plan(workers=workers, seed=seed, ends=ends, minutes=minutes)
    with (
        tempfile.TemporaryDirectory() as directory,
        server(durable=False) as postgres,  # nothing is timed
        filled(postgres, queue) as database,
    ):
        waiting = Counter({tenant.project_id: tenant.jobs for tenant in queue})
        fleet = Fleet(database, plan, waiting, Path(directory))
        for tenant in queue:
            if tenant.max_running_jobs is not None:
                fleet.set_apart(tenant.project_id)
        fleet.at(LATE_S, lambda: fleet.arrive(
            LATE, lambda: add_jobs(database, LATE, first=jobs, at=START)))  # fmt: skip
        with counting(database) as load:
            before_s = postgres.processor_s()
            found = fleet.run()
            server_s = postgres.processor_s() - before_s
    print(f"{jobs:,} queued jobs, {workers:,} workers: {len(found.ended):,} ended, "
          f"in {load.wall_s:.0f} s of this machine")  # fmt: skip
    print(describe(found, workers))
    print(
        f"  each job that ended: {load.each(len(found.ended))}; "
        f"{1000 * server_s / len(found.ended):.1f} ms of the server's processors",
        flush=True,
    )
    return found, load


def describe(found: Outcome, workers: int) -> str:
    """What came of a simulation, for people."""
    waits = {
        name: start_s - found.arrived_s.get(name, 0.0)
        for name, start_s in found.first_start_s.items()
    }
    late_s = found.last_start_s.get(LATE.project_id, 0.0) - LATE_S
    lost, idle = found.lost_s / found.capacity_s, found.idle_s / found.capacity_s
    useful = found.useful_s / found.capacity_s
    hours, ideal_hours = found.lasted_s / 3600, found.ideal_s / 3600
    most = {name: found.most_running[name] for name in sorted(found.most_running)}
    return f"""\
  virtual time {hours:.2f} h, ideal {ideal_hours:.2f} h: {hours / ideal_hours:.3f} times the ideal
  the last job began after {found.emptied_s / 3600:.2f} h
  machines died {found.deaths} times, jobs rescued {found.rescued}
  of the workers' time {useful:.1%} was useful, {lost:.1%} died with a machine, {idle:.1%} was idle
  {found.claims:,} claims: {found.claims / found.lasted_s:.2f} a second in virtual time
  running jobs of two projects that wait differ by at most {found.worst_gap}; most at once: {most}
  first job of a project starts after at most {max(waits.values()):.0f} s
  last of the {LATE.jobs} jobs of a late project starts {late_s:.0f} s after they came"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("claims", help="claims a second, and what a claim reads")
    command.add_argument("--jobs", type=int, default=1_000_000)
    command.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16])
    command.add_argument("--seconds", type=float, default=5)
    command.set_defaults(measure=measure_claims)
    command = commands.add_parser("fleet", help="a fleet whose machines die and join")
    command.add_argument("--jobs", type=int, default=1_000_000)
    command.add_argument("--workers", type=int, default=1000)
    command.add_argument("--ends", type=int, help="stop after so many ends; default: the last")
    command.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(measure=run_fleet)
    command = commands.add_parser("idle", help="what idle workers and their connections cost")
    command.add_argument("--workers", type=int, default=1000)
    command.add_argument("--seconds", type=float, default=5)
    command.set_defaults(measure=idle.measure)
    options = vars(parser.parse_args(arguments))
    del options["what"]
    options.pop("measure")(**options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
