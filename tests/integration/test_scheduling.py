"""Simulated fleets over the real queue: every job ends once, and projects take turns."""

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.db.tables import Job
from app.core.db.worker_tables import Attempt
from app.core.job.status import JobStatus
from benchmarks.scheduling import claims
from benchmarks.scheduling.fleet import Fleet
from benchmarks.scheduling.plans import Outcome, Plan
from benchmarks.scheduling.queues import GB, LONGEST_S, START, Tenant, add_jobs, filled, tenants
from benchmarks.support.postgres import PostgresServer

LATE = Tenant("proj-late", 3)
LATE_S = 600.0
EVERYWHERE = (8 * GB,)
"""Memory of jobs that every machine can train."""


def simulate(postgres: PostgresServer, data_dir: Path, *, jobs: int, plan: Plan) -> Outcome:
    """Drain a queue, and check what must be true of every job afterwards."""
    queue = tenants(jobs, projects=5, limit=2)
    with filled(postgres, queue, EVERYWHERE) as database:
        waiting = Counter({tenant.project_id: tenant.jobs for tenant in queue})
        fleet = Fleet(database, plan, waiting, data_dir)
        fleet.set_apart("proj-limited")
        late = (database, LATE)
        fleet.at(LATE_S, lambda: fleet.arrive(
            LATE, lambda: add_jobs(*late, first=jobs, at=START, memory=EVERYWHERE)))  # fmt: skip
        found = fleet.run()
        with database.reading() as session:
            statuses = Counter(session.scalars(select(Job.status)))
            outcomes = session.execute(select(Attempt.job_id, Attempt.outcome)).all()
    assert statuses == {JobStatus.SUCCEEDED: jobs + LATE.jobs}
    succeeded = Counter(job_id for job_id, outcome in outcomes if outcome == "succeeded")
    assert len(succeeded) == jobs + LATE.jobs
    assert set(succeeded.values()) == set(found.ended.values()) == {1}
    assert {outcome for _, outcome in outcomes} <= {"succeeded", "lost"}
    assert len(outcomes) == found.claims == jobs + LATE.jobs + found.rescued
    return found


@pytest.mark.parametrize(
    ("jobs", "workers"), [(100, 12), pytest.param(2000, 52, marks=pytest.mark.long)]
)
def test_a_fleet_whose_machines_die_drains_its_queue(
    postgres: PostgresServer, tmp_path: Path, jobs: int, workers: int
) -> None:
    plan = Plan(workers=workers, lives_s=7200.0, away_s=300.0, lease_s=600.0, poll_s=120.0)

    found = simulate(postgres, tmp_path, jobs=jobs, plan=plan)

    assert found.rescued > 0, "no machine died with a job"
    assert found.missed == 0, "a worker was idle while a job waited that it could train"
    assert found.most_running["proj-limited"] == 2
    assert found.worst_gap <= 2 * plan.workers_each, "a machine dies with that many jobs at most"
    share = workers / 5
    assert max(found.most_running.values()) <= share + 2 * plan.workers_each
    assert found.first_start_s["proj-late"] - LATE_S < 300, "a late project waits for few jobs"
    assert found.lost_s <= found.rescued * plan.save_s, "jobs resume from their saved states"
    # The queue empties while all workers train. After that, only a job begins whose machine died:
    # its lease runs out, a janitor looks sixty times in a lease, and an idle worker asks.
    wait_s = plan.lease_s + plan.lease_s / 60 + 1.5 * plan.poll_s
    assert found.emptied_s <= max(found.busy_s, found.last_loss_s + wait_s)
    # None begins after that one, so each still running ends without another loss.
    assert found.lasted_s <= found.emptied_s + LONGEST_S


@pytest.mark.parametrize("case", ["too large", "other base model"])
def test_a_claim_does_not_read_the_jobs_that_do_not_fit(
    postgres: PostgresServer, case: str
) -> None:
    with filled(postgres, []) as database:
        claims.add_cases(database, 1000)
        claims.show_only(database, case)
        poll = claims.cost_of_poll(database, claims.SMALL)
        claim = claims.cost_of_claim(database, claims.SMALL)

    assert claim.statements > poll.statements, "nothing was claimed"
    assert poll.rows < claim.rows < 200, "950 jobs wait ahead of those that fit"
